/** Encrypted stores: whole sectors beneath, any bytes above. */
import { createCipheriv, randomBytes } from 'node:crypto'
import t from 'tap'
import { createSectorCipher } from '../../src/crypto/sector-cipher.js'
import type { CipherSpec } from '../../src/crypto/spec.js'
import { WritableCipherStore } from '../../src/io/cipher-store.js'
import { MemoryStore } from '../support/stores.js'

const SECTOR = 512
const UNIT = 4096
const KEY = randomBytes(64)

const spec = (): CipherSpec => {
  const key = new SharedArrayBuffer(KEY.length)
  KEY.copy(Buffer.from(key))
  return { mode: 'xts', ivGenerator: 'plain64', ivHash: undefined, key }
}

/** What OpenSSL makes of a sector. */
function sealed(sector: Buffer, number: number): Buffer {
  const iv = Buffer.alloc(16)
  iv.writeUIntLE(number, 0, 6)
  return createCipheriv('aes-256-xts', KEY, iv).update(sector)
}

function opened(content?: Buffer, countsBy: 'disk' | 'file' = 'file') {
  const base = new MemoryStore('image', content)
  const cipher = createSectorCipher(spec())
  return { base, store: new WritableCipherStore(base, { cipher, countsBy, unitBytes: UNIT }) }
}

/** The file of a plain text, sector by sector, whose first sector has the number `first`. */
function sealedFile(plain: Buffer, first = 0): Buffer {
  const sectors: Buffer[] = []
  for (let at = 0; at < plain.length; at += SECTOR) {
    sectors.push(sealed(plain.subarray(at, at + SECTOR), first + at / SECTOR))
  }
  return Buffer.concat(sectors)
}

function read(store: WritableCipherStore, at: number, length: number, offset?: number): Buffer {
  const target = Buffer.alloc(length + 7, 0xee)
  const got = store.read(target, 7, length, at, offset)
  t.ok(target.subarray(0, 7).equals(Buffer.alloc(7, 0xee)), 'nothing before the start')
  t.ok(
    target.subarray(7 + got).every(byte => byte === 0xee),
    'nothing after what was read',
  )
  return target.subarray(7, 7 + got)
}

t.test('reading, aligned and not, is what OpenSSL decrypts', async t => {
  const plain = randomBytes(3 * UNIT)
  const { store } = opened(sealedFile(plain))
  for (const [at, length] of [
    [0, plain.length],
    [SECTOR, 2 * SECTOR],
    [1, 1],
    [511, 2],
    [700, 4000],
    [UNIT - 3, 6],
    [plain.length - 5, 5],
  ] as const) {
    t.ok(read(store, at, length).equals(plain.subarray(at, at + length)), `${length} at ${at}`)
  }
})

t.test('writing, aligned and not, leaves what OpenSSL encrypts', async t => {
  const plain = randomBytes(3 * UNIT)
  const { base, store } = opened(sealedFile(plain))
  for (const [at, length] of [
    [0, SECTOR],
    [SECTOR, 3 * SECTOR],
    [3, 1],
    [511, 2],
    [700, 4000],
    [UNIT + 100, 300],
    [UNIT + SECTOR, SECTOR + 9],
    [2 * UNIT - 9, SECTOR + 9],
    [plain.length - 5, 5],
  ] as const) {
    const bytes = randomBytes(length)
    bytes.copy(plain, at)
    store.write(Buffer.concat([Buffer.alloc(3), bytes]), 3, length, at)
    t.ok(base.bytes().equals(sealedFile(plain)), `${length} at ${at}`)
  }
})

t.test('more than a piece at once', async t => {
  const { base, store } = opened()
  const plain = randomBytes(2 ** 21 + 3 * SECTOR)
  store.write(plain, 0, plain.length, 0)
  t.ok(base.bytes().equals(sealedFile(plain)))
  const bytes = randomBytes(2 ** 20 + 100)
  bytes.copy(plain, 77)
  store.write(bytes, 0, bytes.length, 77)
  t.ok(base.bytes().equals(sealedFile(plain)), 'unaligned')
})

t.test('what is written past the end begins with zeros, decrypted', async t => {
  const { base, store } = opened()
  store.write(Buffer.from('abc'), 0, 3, UNIT + 10)
  const sector = Buffer.alloc(SECTOR)
  sector.write('abc', 10)
  const number = UNIT / SECTOR
  t.ok(base.bytes().subarray(UNIT).equals(sealed(sector, number)))
})

t.test('sectors counted by the disk', async t => {
  const disk = 7 * 2 ** 40
  const { base, store } = opened(Buffer.alloc(2 * UNIT), 'disk')
  const plain = randomBytes(UNIT)
  store.write(plain, 0, UNIT, UNIT, disk)
  t.ok(
    base
      .bytes()
      .subarray(UNIT)
      .equals(sealedFile(plain, disk / SECTOR)),
  )
  t.ok(read(store, UNIT, UNIT, disk).equals(plain))
  t.ok(read(store, UNIT + 700, 900, disk + 700).equals(plain.subarray(700, 1600)), 'a part')
  t.notOk(read(store, UNIT, UNIT, disk + UNIT).equals(plain), 'elsewhere it is nonsense')
  t.throws(() => read(store, UNIT, UNIT), /without a place/)
  store.write(Buffer.from('a part'), 0, 6, UNIT + 509, disk + 509)
  plain.write('a part', 509)
  t.ok(read(store, UNIT, UNIT, disk).equals(plain), 'the rest of both sectors stays')
})

t.test('the end of the file', async t => {
  const plain = Buffer.concat([randomBytes(UNIT + SECTOR), Buffer.alloc(UNIT - SECTOR)])
  const file = sealedFile(plain)
  // What the file lacks of its last unit is zeros there, and so no zeros here.
  const lacking = Buffer.concat([file.subarray(0, UNIT + SECTOR), Buffer.alloc(UNIT - SECTOR)])
  const { store } = opened(file.subarray(0, UNIT + SECTOR))
  const { store: whole } = opened(lacking)
  t.ok(read(store, UNIT, UNIT).equals(read(whole, UNIT, UNIT)))
  t.ok(read(store, UNIT + 1000, 2000).equals(read(whole, UNIT + 1000, 2000)), 'unaligned')
  t.equal(read(store, UNIT, 2 * UNIT).length, UNIT, 'and nothing beyond that unit')
  t.equal(read(store, 2 * UNIT, UNIT).length, 0)
  const { store: torn } = opened(file.subarray(0, UNIT + 100))
  const sector = Buffer.concat([file.subarray(UNIT, UNIT + 100), Buffer.alloc(SECTOR - 100)])
  const { store: filled } = opened(sector)
  t.notOk(read(torn, UNIT, SECTOR).equals(read(filled, 0, SECTOR)), 'numbers count')
  t.equal(read(torn, UNIT, SECTOR).length, SECTOR, 'half a sector')
})

t.test('holes are nothing that reads as zeros', async t => {
  const { store, base } = opened(Buffer.alloc(4 * UNIT))
  t.equal(store.nextData(UNIT), UNIT)
  t.ok(store.nextHole(0) >= 4 * UNIT)
  t.notOk(store.punch())
  t.equal(base.sizeBytes, 4 * UNIT)
  t.notOk(read(store, 0, UNIT).every(byte => byte === 0))
})
