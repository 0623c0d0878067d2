// Builds the page into src/http/demo/assets, which the server embeds. With --check, fails if what is there is not what the sources build.
//
// The output depends on the sources and the pinned esbuild alone: no hashes in names, no source map, no times.

import { build } from 'esbuild';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const assets = here('../../../../src/http/demo/assets/');

const options = {
  entryNames: '[name]',
  absWorkingDir: here('.'),
  alias: {
    '@sealwire/client/browser': here('../core/src/browser.ts'),
    '@sealwire/client/protocol': here('../core/src/protocol.ts'),
    '@sealwire/client/push': here('../core/src/push.ts'),
    '@sealwire/client': here('../core/src/index.ts'),
    '@sealwire/x3dh': here('../x3dh/src/index.ts'),
  },
  outdir: assets,
  bundle: true,
  minify: true,
  target: ['es2022', 'chrome111', 'firefox115', 'safari16.4'],
  charset: 'utf8',
  // The licences of what is bundled. That of noble-hashes is not in its sources.
  legalComments: 'eof',
  write: false,
};
const page = await build({
  ...options,
  entryPoints: { app: here('src/main.ts'), 'app.css': here('src/style/main.css') },
  format: 'esm',
  footer: { js: '/*! noble-hashes - MIT License (c) 2022 Paul Miller (paulmillr.com) */' },
});
// Not a module: not all of these browsers take modules as service workers.
const worker = await build({ ...options, entryPoints: { worker: here('worker/worker.ts') }, format: 'iife' });
const files = new Map([...page.outputFiles, ...worker.outputFiles].map(({ path, contents }) => [path.split('/').at(-1).replace('app.css.css', 'app.css'), Buffer.from(contents)]));
for (const name of ['index.html', 'icon.svg', 'icon.png']) files.set(name, readFileSync(here(`src/${name}`)));

if (process.argv.includes('--check')) {
  const committed = readdirSync(assets).sort().join(' ');
  const wanted = [...files.keys()].sort().join(' ');
  const stale = committed === wanted ? [...files].filter(([name, built]) => !built.equals(readFileSync(assets + name))).map(([name]) => name) : [`${committed} instead of ${wanted}`];
  if (stale.length > 0) {
    console.error(`src/http/demo/assets is not what the sources build (${stale}): run npm run build -w packages/try-it`);
    process.exit(1);
  }
  console.log('src/http/demo/assets is what the sources build');
} else {
  mkdirSync(assets, { recursive: true });
  for (const [name, built] of files) writeFileSync(assets + name, built);
  console.log([...files].map(([name, { length }]) => `${name}: ${length} bytes`).join('\n'));
}
