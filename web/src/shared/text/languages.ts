/** The languages that the pages speak, and which of them a browser wants. */
export const LANGUAGES = ["en", "de"] as const;
const REMEMBERED = "consilia-language";

/** The language chosen here before, else the browser's, else English. */
export function firstLanguage(): string {
  const wanted = localStorage.getItem(REMEMBERED) ?? navigator.language.slice(0, 2);
  return LANGUAGES.find((known) => known === wanted) ?? "en";
}

export function rememberLanguage(chosen: string): void {
  localStorage.setItem(REMEMBERED, chosen);
}

/** The browser's own variety of the language (en-GB), for dates and numbers. */
export function localeOf(language: string): string {
  return navigator.languages.find((one) => one.startsWith(`${language}-`)) ?? language;
}
