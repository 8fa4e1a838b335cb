import { NativeSelect, Table, TagsInput, Text, TextInput } from "@mantine/core";

import { useText } from "../../shared/text/language";
import type { ColumnChange, ColumnView } from "../api/schema";

export type Changes = Readonly<Record<string, ColumnChange>>;

const TYPES = ["float32", "float64", "int64", "bool", "str", "category", "date", "timestamp"];
const ROLES = ["", "feature", "target", "patient", "date", "text", "ignore"];

/** The columns of a table as people declare them; `change` null: to read only. */
export function SchemaTable(props: {
  columns: readonly ColumnView[];
  changes: Changes;
  change: ((name: string, part: Omit<ColumnChange, "name">) => void) | null;
}) {
  const { say } = useText();
  const { change } = props;
  const types = [...new Set([...TYPES, ...props.columns.map((column) => column.type)])];
  const roles = [...new Set([...ROLES, ...props.columns.map((column) => column.role)])];
  const words = (role: string) => say(role === "" ? "column.role.none" : `column.role.${role}`);
  const unknown = (found: ColumnView, shown: ColumnView) => !found.unit_known && shown.unit === found.unit && (
    <Text size="xs" className="quiet" maw={150} role="note">{say("column.unit.unknown")}</Text>
  );
  return (
    <Table.ScrollContainer minWidth={900} scrollAreaProps={{ viewportProps: { tabIndex: 0, role: "region", "aria-label": say("dataset.schema") } }}>
      <Table verticalSpacing={6} horizontalSpacing="md">
        <Table.Thead>
          <Table.Tr>
            {["name", "type", "role", "unit", "code_system", "missing", "description"].map((head) => (
              <Table.Th key={head}><Text span size="sm" fw={560} className="quiet">{say(`column.${head}`)}</Text></Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {props.columns.map((found) => {
            const column = { ...found, ...defined(props.changes[found.name]) };
            const of = (key: string) => `${say(`column.${key}`)}: ${found.name}`;
            return (
              <Table.Tr key={found.name}>
                <Table.Td fw={560} style={{ whiteSpace: "nowrap" }}>{found.name}</Table.Td>
                {change ? (
                  <>
                    <Table.Td><NativeSelect size="xs" miw={104} aria-label={of("type")} data={types} value={column.type} onChange={(event) => change(found.name, { type: event.currentTarget.value })} /></Table.Td>
                    <Table.Td><NativeSelect size="xs" miw={118} aria-label={of("role")} data={roles.map((role) => ({ value: role, label: words(role) }))} value={column.role} onChange={(event) => change(found.name, { role: event.currentTarget.value })} /></Table.Td>
                    <Table.Td><TextInput size="xs" w={90} aria-label={of("unit")} value={column.unit} onChange={(event) => change(found.name, { unit: event.currentTarget.value })} />{unknown(found, column)}</Table.Td>
                    <Table.Td><TextInput size="xs" miw={110} aria-label={of("code_system")} value={column.code_system} onChange={(event) => change(found.name, { code_system: event.currentTarget.value })} /></Table.Td>
                    <Table.Td><TagsInput size="xs" miw={110} aria-label={of("missing")} value={[...column.missing]} onChange={(missing) => change(found.name, { missing })} /></Table.Td>
                    <Table.Td><TextInput size="xs" aria-label={of("description")} value={column.description} onChange={(event) => change(found.name, { description: event.currentTarget.value })} /></Table.Td>
                  </>
                ) : (
                  <>
                    <Table.Td className="mono">{column.type}</Table.Td>
                    <Table.Td>{column.role ? words(column.role) : "–"}</Table.Td>
                    <Table.Td>{column.unit || "–"}{unknown(found, column)}</Table.Td>
                    <Table.Td>{column.code_system || "–"}</Table.Td>
                    <Table.Td>{column.missing.join(", ") || "–"}</Table.Td>
                    <Table.Td>{column.description || "–"}</Table.Td>
                  </>
                )}
              </Table.Tr>
            );
          })}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}

/** The parts of a change that were given; null means "as found". */
function defined(change: ColumnChange | undefined): Partial<ColumnView> {
  const parts = Object.entries(change ?? {}).filter(([, value]) => value !== null);
  return Object.fromEntries(parts);
}
