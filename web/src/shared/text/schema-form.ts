/** A form out of a JSON schema: which fields there are and how each is asked for. */

export type FieldKind = "switch" | "number" | "choice" | "text" | "list" | "other";

export interface Field {
  readonly path: readonly string[];
  readonly kind: FieldKind;
  readonly choices: readonly string[];
  readonly preset: unknown; // what holds when the file says nothing
  readonly whole: boolean; // numbers without a fraction
}

export interface FieldGroup {
  readonly name: string; // "" for the fields at the top
  readonly description: string;
  readonly fields: readonly Field[];
}

type Node = Readonly<Record<string, unknown>>;

function isNode(value: unknown): value is Node {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function nodeAt(node: Node, key: string): Node {
  const value = node[key];
  return isNode(value) ? value : {};
}

/** The schema that a $ref names, with what stands beside the $ref (its default). */
function resolved(root: Node, node: Node): Node {
  const ref = node["$ref"];
  if (typeof ref !== "string") return node;
  const target = ref.replace(/^#\//, "").split("/").reduce(nodeAt, root);
  return { ...target, ...node };
}

function kindOf(root: Node, node: Node): FieldKind {
  if (Array.isArray(node["enum"])) return "choice";
  const type = node["type"];
  if (type === "boolean") return "switch";
  if (type === "integer" || type === "number") return "number";
  if (type === "string") return "text";
  if (type === "array" && resolved(root, nodeAt(node, "items"))["type"] === "string") return "list";
  return "other";
}

function fieldOf(root: Node, path: readonly string[], node: Node, preset: unknown): Field {
  const choices = Array.isArray(node["enum"]) ? node["enum"].map(String) : [];
  return { path, kind: kindOf(root, node), choices, preset, whole: node["type"] === "integer" };
}

/** The groups of a schema: its plain fields first, then one group for every record in it. */
export function groupsOf(schema: unknown): FieldGroup[] {
  if (!isNode(schema)) return [];
  const top = resolved(schema, schema);
  const plain: Field[] = [];
  const groups: FieldGroup[] = [];
  for (const name of Object.keys(nodeAt(top, "properties"))) {
    const node = resolved(schema, nodeAt(nodeAt(top, "properties"), name));
    const inner = nodeAt(node, "properties");
    if (Object.keys(inner).length === 0) {
      plain.push(fieldOf(schema, [name], node, node["default"]));
      continue;
    }
    const presets = nodeAt(node, "default");
    const description = node["description"];
    groups.push({
      name,
      description: typeof description === "string" ? description : "",
      fields: Object.keys(inner).map((key) => {
        const part = resolved(schema, nodeAt(inner, key));
        return fieldOf(schema, [name, key], part, presets[key] ?? part["default"]);
      }),
    });
  }
  return [{ name: "", description: "", fields: plain }, ...groups];
}

/** The value at a path of nested records; undefined where there is none. */
export function valueAt(values: unknown, path: readonly string[]): unknown {
  let value = values;
  for (const key of path) value = isNode(value) ? value[key] : undefined;
  return value;
}

/** A key as words: "min_records" is "Min records". */
export function spelled(key: string): string {
  const words = key.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
