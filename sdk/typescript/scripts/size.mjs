// Measures the core as an app gets it: bundled, minified and compressed. Fails if it is larger than the limit.

import { build } from 'esbuild';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const LIMIT = 12 * 1024;
const { outputFiles } = await build({
  stdin: {
    contents: `export { SealwireClient, indexedDbStorage } from '@sealwire/client';`,
    resolveDir: fileURLToPath(new URL('../packages/x3dh', import.meta.url)),
  },
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  write: false,
});
const bytes = gzipSync(outputFiles[0].contents, { level: 9 }).length;
console.log(`core: ${bytes} bytes gzipped, ${outputFiles[0].contents.length} minified; the limit is ${LIMIT}`);
if (bytes > LIMIT) process.exit(1);
