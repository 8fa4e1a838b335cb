import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

// One build per program: the page's folder is the root, the package that serves it gets the files.
const PROGRAMS: Readonly<Record<string, { root: string; out: string; server: string }>> = {
  console: { root: "src/console", out: "node/console/static", server: "http://127.0.0.1:8445" },
  hub: { root: "src/hub", out: "hub/static", server: "https://127.0.0.1:8443" },
};

export default defineConfig(({ mode }) => {
  const program = PROGRAMS[mode] ?? PROGRAMS["console"];
  if (!program) throw new Error("vite.config.ts names no program");
  return {
    root: program.root,
    plugins: [react()],
    build: {
      outDir: `../../../src/consilia/${program.out}`,
      emptyOutDir: true,
      target: "es2022",
      assetsInlineLimit: 0, // the content security policy knows no data: fonts or scripts
      modulePreload: { polyfill: false },
      reportCompressedSize: false,
      chunkSizeWarningLimit: 700,
    },
    server: { proxy: { "/api": { target: program.server, secure: false } } },
    test: { root: "src", environment: "node", include: ["**/*.test.ts"] },
  };
});
