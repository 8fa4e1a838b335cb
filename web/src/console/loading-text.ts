/** A data loading plan as text and as blocks: the text is the truth, a form changes parts of it. */
import { isMap, isSeq, parseDocument, type Document } from "yaml";

export type Scalar = boolean | number | string | null;
export type Block = Readonly<Record<string, unknown>>;

export interface Draft {
  readonly blocks: readonly Block[];
  readonly description: string;
  readonly readable: boolean; // false: only the text can be edited
}

/** What a text says; not readable where its blocks are no list of records. */
export function draftOf(text: string): Draft {
  const document = parseDocument(text);
  const unreadable = { blocks: [], description: "", readable: false };
  if (document.errors.length > 0 || !isMap(document.contents)) return unreadable;
  const found = document.toJS() as Record<string, unknown>;
  const blocks = found["blocks"] ?? [];
  const records = (one: unknown) => typeof one === "object" && one !== null && !Array.isArray(one);
  if (!Array.isArray(blocks) || !blocks.every(records)) return unreadable;
  const description = found["description"];
  return { blocks: blocks as Block[], description: typeof description === "string" ? description : "", readable: true };
}

function changed(text: string, change: (document: Document) => void): string {
  const document = parseDocument(text);
  change(document);
  return document.toString({ lineWidth: 0 });
}

/** The text with one field of one block changed; undefined, and what is empty, takes it out. */
export function withField(text: string, block: number, field: string, value: unknown): string {
  return changed(text, (document) => {
    if (value === undefined || value === "") document.deleteIn(["blocks", block, field]);
    else document.setIn(["blocks", block, field], document.createNode(value));
  });
}

export function withDescription(text: string, description: string): string {
  return changed(text, (document) => {
    if (description === "") document.delete("description");
    else document.set("description", description);
  });
}

/** The text with a block at its end. */
export function withBlock(text: string, block: Block): string {
  return changed(text, (document) => {
    const blocks = document.get("blocks");
    if (isSeq(blocks)) {
      blocks.flow = false; // one block a line, as people write them
      blocks.add(document.createNode(block));
    } else document.set("blocks", document.createNode([block]));
  });
}

export function withoutBlock(text: string, at: number): string {
  return changed(text, (document) => {
    document.deleteIn(["blocks", at]);
    const left = document.get("blocks");
    if (isSeq(left) && left.items.length === 0) left.flow = true; // "[]" and not an empty line
  });
}

/** The text with a block one place up (-1) or down (1); comments in it go along. */
export function withMoved(text: string, at: number, by: -1 | 1): string {
  return changed(text, (document) => {
    const blocks = document.get("blocks");
    if (!isSeq(blocks)) return;
    const [moved] = blocks.items.splice(at, 1);
    if (moved !== undefined) blocks.items.splice(at + by, 0, moved);
  });
}

/** A value as a person types it: numbers, true and false by themselves, texts like them in quotes. */
export function scalarOf(typed: string): Scalar {
  const plain = typed.trim();
  const quoted = /^"(.*)"$/.exec(plain);
  if (quoted) return quoted[1] ?? "";
  if (plain === "true" || plain === "false") return plain === "true";
  const number = Number(plain);
  return plain !== "" && Number.isFinite(number) ? number : typed;
}

/** The text that `scalarOf` reads as this value. */
export function typedOf(value: unknown): string {
  if (typeof value === "string") return scalarOf(value) === value ? value : `"${value}"`;
  return typeof value === "number" || typeof value === "boolean" ? String(value) : "";
}
