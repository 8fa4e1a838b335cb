import { isMap, parseDocument } from "yaml";

/** The values that a YAML text says; an empty record where it cannot be read. */
export function valuesOf(text: string): Record<string, unknown> {
  const document = parseDocument(text);
  if (document.errors.length > 0 || !isMap(document.contents)) return {};
  return document.toJS() as Record<string, unknown>;
}

/** The text with one value changed; comments and order stay. undefined takes the key out. */
export function withValue(text: string, path: readonly string[], value: unknown): string {
  const document = parseDocument(text);
  if (value === undefined) document.deleteIn(path);
  else document.setIn(path, value);
  return document.toString({ lineWidth: 0 });
}
