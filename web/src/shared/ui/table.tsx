import { Table, Text } from "@mantine/core";
import type { ReactNode } from "react";

export interface Column<Row> {
  readonly head: string;
  readonly cell: (row: Row) => ReactNode;
  readonly right?: boolean;
  readonly wide?: boolean;
  readonly least?: string; // of a wide one: how narrow it may become
}

/** Rows under heads; scrolls inside itself where the window is narrow. */
export function Rows<Row>(props: {
  label: string;
  rows: readonly Row[];
  columns: readonly Column<Row>[];
  id: (row: Row) => string | number;
  compact?: boolean;
  stacked?: boolean; // each row a card of its own where the window is narrow
}) {
  return (
    <Table.ScrollContainer className={props.stacked ? "stacked" : undefined} minWidth={props.columns.length > 3 && !props.stacked ? 640 : 0} scrollAreaProps={{ viewportProps: { tabIndex: 0, "aria-label": props.label, role: "region" } }}>
      <Table aria-label={props.label} verticalSpacing={props.compact ? 6 : "sm"} horizontalSpacing={props.stacked ? "sm" : "lg"} fz={props.compact ? "sm" : "md"}>
        <Table.Thead>
          <Table.Tr>
            {props.columns.map((column) => (
              <Table.Th key={column.head} ta={column.right ? "right" : "left"} fw={560}>
                <Text span size="sm" fw={560} className="quiet">{column.head}</Text>
              </Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {props.rows.map((row) => (
            <Table.Tr key={props.id(row)} className="link-row">
              {props.columns.map((column) => (
                <Table.Td
                  key={column.head}
                  ta={column.right ? "right" : "left"}
                  className={column.right ? "figures" : undefined}
                  data-head={column.head}
                  style={column.wide ? { overflowWrap: "anywhere", minWidth: column.least ?? "9rem" } : { whiteSpace: "nowrap" }}
                >
                  {column.cell(row)}
                </Table.Td>
              ))}
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Table.ScrollContainer>
  );
}
