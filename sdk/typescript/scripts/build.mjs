// Builds the packages with tsc, in the order in which they need each other, and copies the licences into them.

import { execFileSync } from 'node:child_process';
import { copyFileSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const only = process.argv.slice(2);
for (const name of ['core', 'libsignal', 'x3dh']) {
  if (only.length > 0 && !only.includes(name)) continue;
  rmSync(here(`../packages/${name}/dist`), { recursive: true, force: true });
  execFileSync(here('../node_modules/.bin/tsc'), ['-p', here(`../packages/${name}`)], { stdio: 'inherit' });
  for (const licence of ['LICENSE-MIT', 'LICENSE-APACHE']) {
    copyFileSync(here(`../../../${licence}`), here(`../packages/${name}/${licence}`));
  }
}
