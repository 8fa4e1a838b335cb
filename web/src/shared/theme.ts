import { createTheme, type MantineColorsTuple } from "@mantine/core";

const teal: MantineColorsTuple = [
  "#e9f6f3", "#d3ebe5", "#a5d6ca", "#74c0ae", "#4cab96",
  "#2c9782", "#147f6c", "#0b6a5a", "#095548", "#063f36",
];
const ink: MantineColorsTuple = [
  "#d5d9df", "#b3bac4", "#9aa3b0", "#78828f", "#414b58",
  "#323b47", "#252d38", "#1b222b", "#141a21", "#0d1217",
];
const amber: MantineColorsTuple = [
  "#fdf5e3", "#f9e8c3", "#f3d48c", "#edbf54", "#e7ad2b",
  "#d69a13", "#a8740a", "#875c07", "#6a4806", "#4c3404",
];
const brick: MantineColorsTuple = [
  "#fceeec", "#f7d8d4", "#eeb1a9", "#e4897d", "#da6657",
  "#cc4b3a", "#b23a2a", "#952d1f", "#762317", "#551810",
];

/** The calm look that every Consilia page shares; colours reach 4.5:1 on their grounds. */
export const theme = createTheme({
  colors: { teal, dark: ink, amber, brick },
  primaryColor: "teal",
  primaryShade: { light: 7, dark: 6 },
  fontFamily: "'Inter Variable', system-ui, sans-serif",
  fontFamilyMonospace: "ui-monospace, 'SFMono-Regular', 'DejaVu Sans Mono', Menlo, Consolas, monospace",
  headings: { fontFamily: "'Inter Variable', system-ui, sans-serif", fontWeight: "620" },
  defaultRadius: "md",
  cursorType: "pointer",
  focusRing: "auto",
  respectReducedMotion: true,
  fontSizes: { xs: "0.8rem", sm: "0.875rem", md: "0.95rem", lg: "1.08rem", xl: "1.25rem" },
});
