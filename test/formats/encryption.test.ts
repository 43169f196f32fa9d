/** Unlocking the layers of a chain. How headers and ciphers are read is tested in test/crypto. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Chain, closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import {
  type AskPassphrase,
  cipherOf,
  lockChain,
  unlockChain,
} from '../../src/image/opening/encryption.js'
import type { EncryptionMethod } from '../../src/formats/format.js'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import { repairQcow2 } from '../../src/formats/qcow2/repair.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const SPEC: ImageSpec = { clusterBits: 12, sizeBytes: 2 ** 20 }
const CRYPT_METHOD_AT = 32

/** An image that says that it is encrypted with AES, on others that say it or do not. */
function chainOf(t: Test, methods: readonly number[]): Chain {
  const folder = tempFolder(t)
  methods.forEach((method, i) => {
    const below = i > 0 ? { backing: { name: `${i - 1}.qcow2`, format: 'qcow2' } } : {}
    const bytes = buildImage({ ...SPEC, ...below }).bytes()
    bytes.writeUInt32BE(method, CRYPT_METHOD_AT)
    writeFileSync(join(folder, `${i}.qcow2`), bytes)
  })
  const chain = openChain(join(folder, `${methods.length - 1}.qcow2`))
  t.teardown(() => closeChain(chain))
  return chain
}

const keysOf = ({ layers }: Chain): (string | undefined)[] =>
  layers.map(
    ({ encryption }) => encryption?.spec && Buffer.from(encryption.spec.key).toString('latin1'),
  )

/** Gives the next of `answers`; `given` collects the buffers that were given. */
function asker(answers: readonly string[]) {
  const asked: [string, EncryptionMethod][] = []
  const given: Buffer[] = []
  const ask: AskPassphrase = async (path, method) => {
    const answer = Buffer.from(answers[asked.length] as string)
    asked.push([path.slice(path.lastIndexOf('/') + 1), method])
    given.push(answer)
    return [answer]
  }
  return { ask, asked, given }
}

t.test('each encrypted layer is asked for, the image first', async t => {
  const { ask, asked, given } = asker(['of the top', 'of the base'])
  const locked = chainOf(t, [1, 0, 1])
  const chain = await unlockChain(locked, ask)
  t.same(asked, [
    ['2.qcow2', 'AES'],
    ['0.qcow2', 'AES'],
  ])
  t.same(keysOf(chain), ['of the top\0\0\0\0\0\0', undefined, 'of the base\0\0\0\0\0'])
  t.same(keysOf(locked), [undefined, undefined, undefined])
  t.ok(
    given.every(each => each.every(byte => byte === 0)),
    'passphrases are wiped',
  )
  t.equal(chain.warnings.filter(text => /cannot tell a wrong passphrase/.test(text)).length, 2)
  lockChain(chain)
  t.same(keysOf(chain), ['\0'.repeat(16), undefined, '\0'.repeat(16)], 'and keys, in the end')
})

t.test('no passphrase is asked for a layer that is not encrypted', async t => {
  const chain = chainOf(t, [0, 0])
  const { ask, asked } = asker([])
  t.same((await unlockChain(chain, ask)).layers, chain.layers)
  t.same(asked, [])
  for (const layer of chain.layers) t.equal(cipherOf(layer), undefined)
})

t.test('an image that was not unlocked is not read', async t => {
  const [layer] = chainOf(t, [1]).layers
  t.throws(() => cipherOf(layer), /is encrypted and was not unlocked/)
})

t.test('if asking fails, earlier passphrases are wiped, too', async t => {
  const told = Buffer.from('top')
  const ask: AskPassphrase = async path => {
    if (path.endsWith('1.qcow2')) return [told]
    throw new Error('no answer')
  }
  await t.rejects(unlockChain(chainOf(t, [1, 1]), ask), { message: 'no answer' })
  t.same(told, Buffer.alloc(3))
})

t.test('LUKS without a header', async t => {
  const { ask, asked } = asker(['anything'])
  await t.rejects(unlockChain(chainOf(t, [2]), ask), {
    code: 'CORRUPT',
    message: /says nowhere where the LUKS header is/,
  })
  t.same(asked, [], 'nobody is asked in vain')
})

t.test('a LUKS header that cannot be where the image says', async t => {
  for (const [offset, length] of [
    [4096, 2 ** 52],
    [4096, 2 ** 25],
    [2 ** 40, 4096],
  ] as const) {
    const folder = tempFolder(t)
    const file = join(folder, 'disk.qcow2')
    const data = Buffer.alloc(16)
    data.writeBigUInt64BE(BigInt(offset))
    data.writeBigUInt64BE(BigInt(length), 8)
    const bytes = buildImage({ ...SPEC, extensions: [{ type: 0x0537be77, data }] }).bytes()
    bytes.writeUInt32BE(2, CRYPT_METHOD_AT)
    writeFileSync(file, bytes)
    const chain = openChain(file)
    t.teardown(() => closeChain(chain))
    const { ask, asked } = asker(['anything'])
    const message = `a LUKS header of ${length} bytes at ${offset} is impossible`
    await t.rejects(unlockChain(chain, ask), { code: 'CORRUPT', message })
    t.same(asked, [], 'nobody is asked in vain')
    const store = new MemoryStore(file, bytes)
    const { findings } = checkQcow2(store)
    t.ok(findings.some(({ kind, message: said }) => kind === 'corruption' && said === message))
    repairQcow2(store, 'leaks')
    t.ok(store.bytes().equals(bytes), 'no count is lowered: which clusters it has is not known')
  }
})
