/** New LUKS headers: cryptsetup and the reader open them with the passphrase, and with no other. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { mergeKey, splitKey } from '../../src/crypto/anti-forensic.js'
import { readLuks1, unlockLuks1 } from '../../src/crypto/luks1.js'
import { luksChoice } from '../../src/crypto/luks1-options.js'
import { createLuks1, luks1Bytes } from '../../src/crypto/luks1-write.js'
import { attempt, needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const PASSPHRASE = Buffer.from('of-the-header')
const KINDS = [
  {},
  { 'cipher-alg': 'aes-128', 'hash-alg': 'sha1', 'ivgen-alg': 'plain' },
  { 'cipher-alg': 'aes-192', 'cipher-mode': 'cbc', 'hash-alg': 'sha512' },
  { 'cipher-mode': 'cbc', 'ivgen-alg': 'essiv', 'hash-alg': 'ripemd160' },
]

for (const kind of KINDS) {
  t.test(`header with ${JSON.stringify(kind)}`, { ...needs('cryptsetup') }, async t => {
    const choice = luksChoice({ ...kind, 'iter-time': 5 })
    const luks = await createLuks1(choice, PASSPHRASE)
    const store = new MemoryStore('luks')
    const area = { offset: 512, length: luks1Bytes(choice) }
    luks.write(store, area.offset)
    store.truncate(area.offset + area.length + 2 ** 20)
    const header = readLuks1(store, area)
    const found = await unlockLuks1(store, area, header, PASSPHRASE)
    t.ok(found && Buffer.from(found.key).equals(Buffer.from(luks.cipher.key)), 'the same key')
    t.equal(await unlockLuks1(store, area, header, Buffer.from('another')), undefined)
    const file = join(tempFolder(t), 'luks')
    writeFileSync(file, store.bytes().subarray(area.offset))
    const open = (input: Buffer) =>
      attempt('cryptsetup', ['open', '--test-passphrase', '--key-file', '-', file], { input })
    t.equal((await open(PASSPHRASE)).code, 0, 'cryptsetup opens it')
    t.not((await open(Buffer.from('another'))).code, 0)
  })
}

t.test('a split key joins, and no part of it is the key', async t => {
  for (const hash of ['sha1', 'sha256']) {
    for (const bytes of [16, 32, 64]) {
      const key = Buffer.from(Array.from({ length: bytes }, (_, i) => i * 3 + 1))
      const material = Buffer.alloc(bytes * 40)
      splitKey(key, hash, material)
      t.equal(material.indexOf(key), -1)
      const joined = Buffer.alloc(bytes)
      mergeKey(material, hash, joined)
      t.ok(joined.equals(key), `${hash}, ${bytes}`)
    }
  }
})
