/** Ranges of arguments as a reviewer types them: "0.001 to 0.1", or a list "16, 32, 64". */

type Scalar = boolean | number | string;

/** The value that a text stands for: a number or true/false where it is one, else itself. */
function scalar(text: string): Scalar {
  const plain = text.trim();
  if (plain === "true" || plain === "false") return plain === "true";
  const number = Number(plain);
  return plain !== "" && Number.isFinite(number) ? number : plain;
}

/** The ranges given (empty ones are left out), or the name of the first that cannot be read. */
export function rangesOf(texts: Readonly<Record<string, string>>): { ranges: Record<string, Scalar[]>; wrong: string } {
  const ranges: Record<string, Scalar[]> = {};
  for (const [name, text] of Object.entries(texts)) {
    if (text.trim() === "") continue;
    const ends = text.split(/\s+to\s+|\s+bis\s+|\s*\.\.\s*|\s+[-–]\s+/);
    if (ends.length > 2) return { ranges: {}, wrong: name };
    const values = (ends.length === 2 ? ends : text.split(/[,;]/)).map(scalar);
    const [low, high] = values;
    const isRange = ends.length === 2;
    const ordered = typeof low === "number" && typeof high === "number" && low <= high;
    if (values.includes("") || (isRange && !ordered)) return { ranges: {}, wrong: name };
    ranges[name] = values;
  }
  return { ranges, wrong: "" };
}
