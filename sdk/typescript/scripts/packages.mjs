// Checks the packages as users get them: packed, linted (publint, attw), installed into an empty project, type-checked under `strict`, run in
// Node, and bundled by Vite.

import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const bin = (name) => join(root, 'node_modules/.bin', name);
const dir = mkdtempSync(join(tmpdir(), 'sealwire-packages-'));
const run = (command, args, cwd = dir) => execFileSync(command, args, { cwd, stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });

try {
  const tarballs = {};
  for (const name of ['core', 'libsignal', 'x3dh']) {
    const path = join(root, 'packages', name);
    const { name: full, dependencies = {} } = JSON.parse(readFileSync(join(path, 'package.json')));
    if (name !== 'x3dh' && Object.keys(dependencies).length > 0) throw new Error(`${full} has dependencies`);
    const [packed] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', dir], path));
    tarballs[full] = `file:${join(dir, packed.filename)}`;
    const files = packed.files.map((file) => file.path);
    for (const needed of ['README.md', 'LICENSE-MIT', 'LICENSE-APACHE', 'dist/index.js', 'dist/index.d.ts']) {
      if (!files.includes(needed)) throw new Error(`${full} lacks ${needed}`);
    }
    const foreign = files.filter((file) => !/^(dist\/|README\.md$|RECIPES\.md$|LICENSE-|package\.json$)/.test(file));
    if (foreign.length > 0) throw new Error(`${full} contains ${foreign}`);
    run(bin('publint'), ['--strict', path]);
    // The packages are ESM only, so what CommonJS finds does not matter.
    run(bin('attw'), [join(dir, packed.filename), '--profile', 'esm-only', '--no-emoji', '--no-color']);
    console.log(`${full}: ${files.length} files, ${packed.size} bytes; publint and attw find nothing`);
  }

  const { devDependencies } = JSON.parse(readFileSync(join(root, 'package.json')));
  const project = join(dir, 'project');
  mkdirSync(project);
  cpSync(join(root, 'test-support/consumer'), project, { recursive: true });
  // The examples of the README, as modules of their own.
  const readme = readFileSync(join(root, 'packages/core/README.md'), 'utf8');
  const examples = [...readme.matchAll(/```ts\n([^]*?)```/g)].map(([, code]) => code).filter((code) => code.startsWith('import'));
  if (examples.length !== 2) throw new Error(`the README has ${examples.length} examples that can be run`);
  for (const [i, name] of ['browser', 'node'].entries()) writeFileSync(join(project, `src/readme-${name}.ts`), `${examples[i]}\nexport {};\n`);
  if (!readFileSync(join(root, '../../README.md'), 'utf8').includes(examples[1])) throw new Error('README.md has another program for Node');
  // The recipes. That for service workers needs types that exclude those of pages.
  const recipes = readFileSync(join(root, 'packages/core/RECIPES.md'), 'utf8');
  const codes = [...recipes.matchAll(/```tsx?\n([^]*?)```/g)].map(([, code]) => code).filter((code) => !code.startsWith('self.'));
  if (codes.length < 9) throw new Error(`RECIPES.md has ${codes.length} recipes`);
  for (const [i, code] of codes.entries()) {
    writeFileSync(join(project, `src/recipes/recipe-${i}.ts`), `${code.replace("import { client } from './client';", '')}\nexport {};\n`);
  }
  writeFileSync(
    join(project, 'package.json'),
    JSON.stringify({
      name: 'consumer',
      private: true,
      type: 'module',
      dependencies: { ...tarballs, ws: devDependencies.ws, '@msgpack/msgpack': devDependencies['@msgpack/msgpack'], '@signalapp/libsignal-client': '0.103.0' },
      devDependencies: Object.fromEntries(['typescript', 'vite', '@types/node', '@types/ws'].map((name) => [name, devDependencies[name]])),
    }),
  );
  run('npm', ['install', '--no-audit', '--no-fund', '--loglevel=error'], project);
  run('npx', ['tsc', '-p', 'tsconfig.node.json'], project);
  run('npx', ['tsc', '-p', 'tsconfig.browser.json'], project);
  run('npx', ['tsc', '-p', 'tsconfig.recipes.json'], project);
  console.log(`an empty project type-checks under strict, with the types of Node and with those of browsers, and so do ${codes.length} recipes`);
  console.log(run('node', ['node.mjs'], project).trim());
  run('npx', ['vite', 'build', '--logLevel', 'error'], project);
  const assets = readdirSync(join(project, 'dist/assets'));
  const script = readFileSync(join(project, 'dist/assets', assets.find((file) => file.endsWith('.js'))), 'utf8');
  if (/from"node:|require\("/.test(script)) throw new Error('the bundle for browsers refers to Node');
  console.log(`Vite bundles it: ${assets.join(', ')}, ${script.length} bytes`);
} finally {
  rmSync(dir, { recursive: true, force: true });
}
