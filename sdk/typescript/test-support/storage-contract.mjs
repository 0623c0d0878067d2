// What every storage must do: `(storage, assert) => Promise`. Runs in Node and in browsers.

export const storageContract = {
  async 'gives back what was stored'(storage, assert) {
    const values = { a: 1, b: 'text', c: null, d: true, e: [1, [2]], f: { g: { h: 'i' } }, j: new Uint8Array([0, 255, 128]), k: -1.5, l: '' };
    await storage.write(new Map(Object.entries(values)));
    for (const [key, value] of Object.entries(values)) assert.deepEqual(await storage.get(key), value);
    assert.deepEqual(await storage.get('missing'), undefined);
    const stored = await storage.get('j');
    assert.equal(stored instanceof Uint8Array, true);
  },

  async 'stores a copy'(storage, assert) {
    const value = { list: [1], bytes: new Uint8Array([1]) };
    const write = storage.write(new Map([['a', value]]));
    value.list.push(2);
    await write;
    const read = await storage.get('a');
    read.bytes[0] = 9;
    assert.deepEqual(await storage.get('a'), { list: [1], bytes: new Uint8Array([1]) });
  },

  async 'deletes'(storage, assert) {
    await storage.write(new Map([['a', 1], ['b', 2]]));
    await storage.write(new Map([['a', undefined], ['missing', undefined]]));
    assert.deepEqual(await storage.list(''), [['b', 2]]);
  },

  async 'lists by prefix, in order'(storage, assert) {
    await storage.write(new Map([['b/2', 1], ['b/10', 2], ['a/x', 3], ['b', 4], ['c', 5], ['b/', 6], ['b/ü', 7]]));
    const keys = async (prefix) => (await storage.list(prefix)).map(([key]) => key);
    assert.deepEqual(await keys('b/'), ['b/', 'b/10', 'b/2', 'b/ü']);
    assert.deepEqual(await keys(''), ['a/x', 'b', 'b/', 'b/10', 'b/2', 'b/ü', 'c']);
    assert.deepEqual(await keys('d'), []);
  },

  async 'writes in the order of the calls'(storage, assert) {
    await Promise.all(Array.from({ length: 50 }, (_, i) => storage.write(new Map([['n', i], [`m${i % 7}`, i]]))));
    assert.equal(await storage.get('n'), 49);
    assert.equal(await storage.get('m0'), 49);
  },
};
