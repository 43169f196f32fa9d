/** Files as stores: their bytes, their ends and their holes. */
import {
  closeSync,
  ftruncateSync,
  openSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { FileStore, WritableFileStore } from '../../src/io/store.js'
import { noise } from '../fixtures/model.js'
import { tempFolder } from '../support/run.js'

const K = 1024

function storeOf(t: Test, path: string, sizeBytes: number): FileStore {
  const fd = openSync(path, 'r')
  t.teardown(() => closeSync(fd))
  return new FileStore(path, fd, sizeBytes)
}

t.test('reading', async t => {
  const path = join(tempFolder(t), 'file')
  const content = noise(10_000, 1)
  writeFileSync(path, content)
  const store = storeOf(t, path, content.length)
  const cases = [
    { title: 'all of it', start: 0, length: 10_000, at: 0, got: 10_000 },
    { title: 'the middle, into the middle', start: 7, length: 100, at: 5000, got: 100 },
    { title: 'over the end', start: 3, length: 500, at: 9900, got: 100 },
    { title: 'at the end', start: 0, length: 10, at: 10_000, got: 0 },
    { title: 'past the end', start: 0, length: 10, at: 2 ** 50, got: 0 },
    { title: 'nothing', start: 0, length: 0, at: 0, got: 0 },
  ]
  for (const { title, start, length, at, got } of cases) {
    t.test(title, async t => {
      const target = Buffer.alloc(20_000, 0xee)
      const expected = Buffer.from(target)
      if (got > 0) content.copy(expected, start, at, at + got)
      t.equal(store.read(target, start, length, at), got)
      t.ok(target.equals(expected), 'nothing else was touched')
    })
  }
})

t.test('a file that shrinks gives less, a closed one an error', async t => {
  const path = join(tempFolder(t), 'file')
  writeFileSync(path, noise(5000, 1))
  const store = storeOf(t, path, 5000)
  truncateSync(path, 1000)
  t.equal(store.read(Buffer.alloc(5000), 0, 5000, 0), 1000)
  const closed = new FileStore(path, 9999, 5000)
  t.throws(() => closed.read(Buffer.alloc(5), 0, 5, 0), { code: 'EBADF', path })
})

t.test('holes', async t => {
  const path = join(tempFolder(t), 'sparse')
  const fd = openSync(path, 'w')
  writeSync(fd, noise(64 * K, 1), 0, 64 * K, 128 * K)
  ftruncateSync(fd, 512 * K)
  closeSync(fd)
  const store = storeOf(t, path, 512 * K)
  t.equal(store.nextData(0), 128 * K)
  t.equal(store.nextData(130 * K), 130 * K)
  t.equal(store.nextData(200 * K), -1)
  t.equal(store.nextData(512 * K), -1, 'at the end')
  t.equal(store.nextHole(0), 0)
  t.equal(store.nextHole(128 * K), 192 * K)
  t.equal(store.nextHole(2 ** 40), 512 * K, 'behind the end')
})

t.test('a file that another process has cut off is not written', async t => {
  const path = join(tempFolder(t), 'file')
  writeFileSync(path, noise(64 * K, 1))
  const fd = openSync(path, 'r+')
  t.teardown(() => closeSync(fd))
  const store = new WritableFileStore(path, fd, BigInt64Array.of(BigInt(64 * K)))
  const write = (at: number) => store.write(Buffer.alloc(K), 0, K, at)
  write(64 * K)
  store.truncate(32 * K)
  write(31 * K)
  store.sync()
  t.equal(store.sizeBytes, 32 * K, 'it may become shorter by its own doing')
  truncateSync(path, 16 * K)
  const refused = { code: 'CORRUPT', context: { isCutOff: true, endsWriting: true } }
  t.throws(() => write(31 * K), refused, 'in place, up to the end that it had')
  t.throws(() => write(0), refused, 'in place, before the cut')
  t.throws(() => write(32 * K), refused, 'behind the end')
  t.throws(() => store.truncate(64 * K), refused)
  t.throws(() => store.sync(), refused)
  t.equal(statSync(path).size, 16 * K)
  t.equal(store.nextData(16 * K), 16 * K, 'what was cut off is no hole')
})

t.test('a write that fails at once does not count', async t => {
  const path = join(tempFolder(t), 'file')
  const fd = openSync(path, 'w+')
  t.teardown(() => closeSync(fd))
  const store = new WritableFileStore(path, fd, BigInt64Array.of(0n))
  // No file can be so long.
  t.throws(() => store.write(noise(K, 1), 0, K, Number.MAX_SAFE_INTEGER - K), { code: 'EFBIG' })
  t.equal(store.sizeBytes, 0)
  store.write(noise(K, 1), 0, K, 0)
  t.equal(statSync(path).size, K)
})
