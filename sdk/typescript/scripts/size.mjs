// Measures the core as an app gets it: bundled, minified and compressed. Fails if it is larger than the limit.

import { build } from 'esbuild';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const LIMIT = 12 * 1024;

/** Measures what `contents` needs. Returns the size in bytes, compressed. */
async function measure(what, contents) {
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: fileURLToPath(new URL('../packages/x3dh', import.meta.url)) },
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    write: false,
  });
  const bytes = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  console.log(`${what}: ${bytes} bytes gzipped, ${outputFiles[0].contents.length} minified`);
  return bytes;
}

const core = await measure('core', `export { SealwireClient } from '@sealwire/client'`);
const browser = `export { SealwireClient } from '@sealwire/client'; export { indexedDbStorage } from '@sealwire/client/browser';`;
await measure('core with IndexedDB and tabs', browser);
await measure('the same with x3dh', `${browser} export { x3dhCrypto } from '@sealwire/x3dh';`);
if (core > LIMIT) {
  console.error(`the core is larger than ${LIMIT} bytes`);
  process.exit(1);
}
