import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

// One build per program: the page's folder is the root, the package that serves it gets the files.
export default defineConfig({
  root: "src/console",
  plugins: [react()],
  build: {
    outDir: "../../../src/consilia/node/console/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the content security policy knows no data: fonts or scripts
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 700,
  },
  server: { proxy: { "/api": { target: "http://127.0.0.1:8443" } } },
  test: { root: "src", environment: "node", include: ["**/*.test.ts"] },
});
