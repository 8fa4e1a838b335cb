/** Which fields each kind of block has and how each is asked for: out of the published schema. */

export type Asked = "pairs" | "columns" | "column" | "words" | "scalars" | "scalar" | "switch" | "choice" | "expression" | "text" | "groups";

export interface BlockField {
  readonly name: string;
  readonly asked: Asked;
  readonly choices: readonly string[];
  readonly preset: unknown;
  readonly required: boolean;
}

export type BlockKinds = Readonly<Record<string, readonly BlockField[]>>;

type Node = Readonly<Record<string, unknown>>;

function nodeOf(value: unknown): Node {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Node) : {};
}

/** A field whose text is a column's name, an expression, or a list of columns, by its name. */
const BY_NAME: Readonly<Record<string, Asked>> = { where: "expression", expression: "expression", columns: "columns", column: "column" };

function askedOf(kind: string, name: string, node: Node): Asked {
  if (Array.isArray(node["enum"])) return "choice";
  switch (node["type"]) {
    case "boolean":
      return "switch";
    case "array":
      return nodeOf(node["items"])["type"] === "string" ? (name === "columns" ? "columns" : "words") : "scalars";
    case "object":
      return nodeOf(node["additionalProperties"])["$ref"] === undefined ? "pairs" : "groups";
    case "string":
      return kind === "derive" && name === "column" ? "text" : (BY_NAME[name] ?? "text");
    default:
      return "scalar"; // one of several plain types
  }
}

/** The fields of every kind of block, in the schema's order. */
export function blockKinds(schema: unknown): BlockKinds {
  const kinds = Object.entries(nodeOf(nodeOf(schema)["properties"]));
  return Object.fromEntries(
    kinds.map(([kind, part]): [string, readonly BlockField[]] => {
      const needed = nodeOf(part)["required"];
      const required: readonly unknown[] = Array.isArray(needed) ? needed : [];
      const fields = Object.entries(nodeOf(nodeOf(part)["properties"])).filter(([name]) => name !== "block");
      return [
        kind,
        fields.map(([name, value]): BlockField => {
          const node = nodeOf(value);
          const choices = Array.isArray(node["enum"]) ? node["enum"].map(String) : [];
          return { name, asked: askedOf(kind, name, node), choices, preset: node["default"], required: required.includes(name) };
        }),
      ];
    }),
  );
}

/** A new block of a kind: what must be there, empty. */
export function emptyBlock(kind: string, fields: readonly BlockField[]): Record<string, unknown> {
  const empty = (asked: Asked): unknown =>
    asked === "pairs" || asked === "groups" ? {} : asked === "columns" || asked === "words" || asked === "scalars" ? [] : "";
  const needed = fields.filter((field) => field.required).map((field): [string, unknown] => [field.name, empty(field.asked)]);
  return { block: kind, ...Object.fromEntries(needed) };
}
