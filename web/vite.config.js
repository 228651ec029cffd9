// How the admin page is built. The server sends ready-made `.br` and `.gz` files, so that nothing is
// compressed while it serves.
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { defineConfig } from 'vite';

/** Writes a `.br` and a `.gz` beside each file that they make smaller. */
function compressed() {
  let folder = '';
  return {
    name: 'compressed',
    apply: 'build',
    configResolved(config) {
      folder = config.build.outDir;
    },
    async closeBundle() {
      for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile() || !/\.(html|js|css|svg)$/.test(entry.name)) continue;
        const path = join(entry.parentPath, entry.name);
        const plain = await readFile(path);
        const coded = {
          br: brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: plain.length } }),
          gz: gzipSync(plain, { level: 9 }),
        };
        for (const [suffix, bytes] of Object.entries(coded)) {
          if (bytes.length < plain.length) await writeFile(`${path}.${suffix}`, bytes);
        }
      }
    },
  };
}

export default defineConfig({
  base: '/admin/',
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  build: {
    target: 'es2022',
    // An inlined file would be a data: address, which the page's policy forbids for scripts and styles.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  plugins: [compressed()],
  // `npm run dev` beside a running `onrush serve`; writes are refused there unless the origins agree.
  server: { proxy: { '/api': 'http://127.0.0.1:8000', '/metrics': 'http://127.0.0.1:8000' } },
});
