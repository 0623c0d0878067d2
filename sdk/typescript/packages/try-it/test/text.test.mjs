import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

/** A module of the page. */
async function load(path) {
  const { outputFiles } = await build({ entryPoints: [fileURLToPath(new URL(`../src/${path}`, import.meta.url))], bundle: true, format: 'esm', write: false });
  return import(`data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`);
}

const { colourOf, dayOf, deviceName, initials, nameOf, onlyEmoji, relative } = await load('text.ts');
const { decode, encode } = await load('model/envelope.ts');

test('people are called by the part of the address before the @', () => {
  assert.equal(nameOf('alice@example.org'), 'Alice');
  assert.equal(nameOf('anna.maria_smith@example.org'), 'Anna Maria Smith');
  assert.equal(nameOf('bob+work@example.org'), 'Bob');
  assert.equal(initials('anna.maria_smith@example.org'), 'AS');
  assert.equal(initials('alice@example.org'), 'A');
  assert.equal(colourOf('alice@example.org'), colourOf('alice@example.org'));
});

test('one to three emoji alone are shown larger', () => {
  for (const text of ['🎉', '👍🏽', '👩‍👩‍👧‍👦', '❤️ 🎉', '🎉🎉🎉']) assert.equal(onlyEmoji(text), true, text);
  for (const text of ['', 'a', '🎉 yes', '1', '🎉🎉🎉🎉']) assert.equal(onlyEmoji(text), false, text);
});

test('days and times in words', () => {
  const now = Date.parse('2026-06-17T12:00:00');
  assert.equal(dayOf(now, now), 'Today');
  assert.equal(dayOf(Date.parse('2026-06-16T23:59:00'), now), 'Yesterday');
  assert.equal(dayOf(Date.parse('2026-06-14T00:01:00'), now), new Intl.DateTimeFormat(undefined, { weekday: 'long' }).format(Date.parse('2026-06-14T00:01:00')));
  assert.match(dayOf(Date.parse('2025-06-14T00:01:00'), now), /2025/);
  assert.equal(relative(now - 5 * 60_000, now), '5 minutes ago');
  assert.equal(relative(now + 7 * 86_400_000, now), 'in 7 days');
  assert.equal(relative(now - 10_000, now), 'just now');
});

test('a device is named after its browser and system', () => {
  assert.equal(deviceName('Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36'), 'Chrome on Linux');
  assert.equal(deviceName('Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Mobile/15E148 Safari/604.1'), 'Safari on iPhone');
  assert.equal(deviceName('Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0'), 'Firefox on Windows');
});

test('an envelope is what this version knows, or nothing', () => {
  const envelopes = [
    { v: 1, kind: 'text', by: 'a@example.org', text: 'hello' },
    { v: 1, kind: 'receipt', state: 'read', ids: ['1'] },
    { v: 1, kind: 'typing', on: true },
    { v: 1, kind: 'copy', to: 'u', address: 'a@example.org', id: 'i', at: 1, text: 't' },
    { v: 1, kind: 'seen', peer: 'u', at: 1 },
  ];
  for (const envelope of envelopes) {
    assert.deepEqual(decode(encode(envelope)), envelope);
    assert.equal(decode(encode({ ...envelope, v: 2 })), null);
    for (const field of Object.keys(envelope)) {
      const { [field]: _, ...rest } = envelope;
      assert.equal(decode(JSON.stringify(rest)), null, `${envelope.kind} without ${field}`);
      if (field !== 'v') assert.equal(decode(JSON.stringify({ ...envelope, [field]: {} })), null, `${envelope.kind} with a wrong ${field}`);
    }
  }
  for (const text of ['', 'hello', 'null', '[]', '{"v":1}', '{"v":1,"kind":"new"}', '{"v":1,"kind":"receipt","state":"eaten","ids":[]}', '{"v":1,"kind":"receipt","state":"read","ids":[1]}']) {
    assert.equal(decode(text), null, text);
  }
});
