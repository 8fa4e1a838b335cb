/** Messages of one language: flat keys, `{name}` for values, `key.one`/`key.other` for plurals. */
export type Messages = Readonly<Record<string, string>>;
export type Values = Readonly<Record<string, string | number>>;

/** The message of `key`, its values filled in; a plural form is chosen by `values.count`. */
export function translate(messages: Messages, language: string, key: string, values: Values = {}): string {
  const count = values["count"];
  const plural =
    typeof count === "number"
      ? messages[`${key}.${new Intl.PluralRules(language).select(count)}`]
      : undefined;
  const message = plural ?? messages[`${key}.other`] ?? messages[key];
  if (message === undefined) return key;
  return message.replaceAll(/\{(\w+)\}/g, (hole, name: string) => {
    const value = values[name];
    if (value === undefined) return hole;
    return typeof value === "number" ? value.toLocaleString(language) : value;
  });
}

/** The keys that a plural form belongs to: `x.one` and `x.other` are both `x`. */
export function baseKey(key: string): string {
  return key.replace(/\.(zero|one|two|few|many|other)$/, "");
}
