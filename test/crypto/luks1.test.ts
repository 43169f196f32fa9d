/** LUKS headers: described, judged, opened; damaged and hostile ones. */
import fc from 'fast-check'
import t, { type Test } from 'tap'
import {
  checkLuks1,
  type Luks1Header,
  type LuksArea,
  readLuks1,
  unlockLuks1,
} from '../../src/crypto/luks1.js'
import type { CipherSpec } from '../../src/crypto/spec.js'
import { ImageError, oneLine } from '../../src/errors.js'
import { noise } from '../fixtures/model.js'
import { holds } from '../support/property.js'
import { MemoryStore, WrappedStore } from '../support/stores.js'
import { AT, type LuksSpec, luksContainer, SLOT_AT, slotAt } from './luks-builder.js'
import { SECTOR } from './reference.js'

const BASE: LuksSpec = {
  mode: 'xts',
  ivGenerator: 'plain64',
  ivHash: undefined,
  key: noise(64, 5),
  hash: 'sha256',
  passphrases: ['secret'],
}

const BASE_CONTENT = luksContainer(BASE)
const base = (): Buffer => Buffer.from(BASE_CONTENT)

interface Container {
  readonly store: MemoryStore
  readonly area: LuksArea
  readonly header: Luks1Header
}

/** A container inside a file, as in a qcow2 image. */
function opened(content: Buffer, offset = 3 * SECTOR): Container {
  const store = new MemoryStore('disk.qcow2', Buffer.concat([Buffer.alloc(offset, 1), content]))
  const area = { offset, length: content.length }
  return { store, area, header: readLuks1(store, area) }
}

const unlock = ({ store, area, header }: Container, passphrase: string) =>
  unlockLuks1(store, area, header, Buffer.from(passphrase))

function isCipher(t: Test, got: CipherSpec | undefined, spec: LuksSpec): void {
  const { mode, ivGenerator, ivHash, key } = spec
  t.match(got, { mode, ivGenerator, ivHash })
  t.ok(got?.key instanceof SharedArrayBuffer, 'all threads may have it')
  t.ok(got && Buffer.from(got.key).equals(key), 'the master key')
}

const OPENED: { title: string; spec: LuksSpec }[] = [
  { title: "QEMU's defaults", spec: BASE },
  { title: 'half of a key of XTS', spec: { ...BASE, key: noise(32, 1) } },
  { title: 'XTS with AES-192', spec: { ...BASE, key: noise(48, 1) } },
  {
    title: 'CBC with AES-192, whose key slots end inside a sector',
    spec: { ...BASE, mode: 'cbc', key: noise(24, 1) },
  },
  {
    title: 'ESSIV',
    spec: { ...BASE, mode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', key: noise(16, 1) },
  },
  {
    title: 'sectors of 32 bits',
    spec: { ...BASE, mode: 'cbc', ivGenerator: 'plain', key: noise(32, 1) },
  },
  {
    title: 'a hash that means nothing',
    spec: { ...BASE, modeText: 'xts-plain64:sha256' },
  },
  {
    title: 'ECB without initialization vectors',
    spec: { ...BASE, mode: 'ecb', ivGenerator: 'none', key: noise(32, 1) },
  },
  {
    title: 'ECB with unneeded ones',
    spec: {
      ...BASE,
      mode: 'ecb',
      ivGenerator: 'none',
      key: noise(16, 1),
      modeText: 'ecb-plain64',
    },
  },
  ...['md5', 'sha1', 'sha224', 'sha384', 'sha512', 'ripemd160'].map(hash => ({
    title: `the hash ${hash}`,
    spec: { ...BASE, hash },
  })),
  {
    title: 'a passphrase of no letters',
    spec: { ...BASE, passphrases: [''] },
  },
]

for (const { title, spec } of OPENED) {
  t.test(title, async t => {
    const container = opened(luksContainer(spec))
    isCipher(t, await unlock(container, spec.passphrases[0]!), spec)
    t.equal(await unlock(container, 'Secret'), undefined, 'another passphrase')
  })
}

t.test('several key slots', async t => {
  const passphrases = [undefined, 'first', undefined, 'second', undefined, undefined, 'ß third', '']
  const spec = { ...BASE, passphrases }
  const container = opened(luksContainer(spec))
  t.same(
    container.header.slots.map(slot => slot.isActive),
    passphrases.map(passphrase => passphrase !== undefined),
  )
  for (const passphrase of ['first', 'second', 'ß third', '']) {
    isCipher(t, await unlock(container, passphrase), spec)
  }
  t.equal(await unlock(container, 'third'), undefined)
})

t.test('a valid header may name a cipher that is not supported', async t => {
  const described = (damage: (b: Buffer) => void) => {
    const content = base()
    damage(content)
    return opened(content).header
  }
  t.match(
    described(() => {}),
    {
      cipher: 'aes-256',
      mode: 'xts',
      ivGenerator: 'plain64',
      ivHash: undefined,
      hash: 'sha256',
      uuid: '00000000-0000-4000-8000-000000000000',
      masterKeyIterations: 3,
      keyBytes: 64,
    },
  )
  t.match(
    described(b => {
      put(b, AT.cipherName, 'serpent')
      put(b, AT.cipherMode, 'cbc-essiv:whirlpool')
      put(b, AT.hash, 'h'.repeat(32))
    }),
    {
      cipher: 'serpent-512',
      mode: 'cbc',
      ivGenerator: 'essiv',
      ivHash: 'whirlpool',
      hash: 'h'.repeat(32),
    },
  )
  t.match(
    described(b => put(b, AT.cipherMode, 'ecb')),
    { mode: 'ecb', ivGenerator: 'none' },
  )
})

function put(b: Buffer, at: number, text: string): void {
  b.fill(0, at, at + 32)
  b.write(text, at)
}
const u32 = (at: number, value: number) => (b: Buffer) => void b.writeUInt32BE(value, at)
const text = (at: number, value: string) => (b: Buffer) => put(b, at, value)
const all =
  (...damages: ((b: Buffer) => void)[]) =>
  (b: Buffer) => {
    for (const damage of damages) damage(b)
  }

const MATERIAL_SECTORS = (64 * 4000) / SECTOR
const U32_MAX = 2 ** 32 - 1

interface Hostile {
  readonly title: string
  readonly damage: (b: Buffer) => void
  readonly code: 'CORRUPT' | 'UNSUPPORTED'
  readonly says: RegExp
}

const UNREADABLE: Hostile[] = [
  {
    title: 'no magic',
    damage: b => b.fill(0, 0, 1),
    code: 'CORRUPT',
    says: /no LUKS header at 1536/,
  },
  {
    title: 'version 2',
    damage: b => b.writeUInt16BE(2, AT.version),
    code: 'CORRUPT',
    says: /version 2, not 1/,
  },
  {
    title: 'no mode',
    damage: text(AT.cipherMode, ''),
    code: 'CORRUPT',
    says: /names no cipher mode/,
  },
  {
    title: 'a mode that is only a generator',
    damage: text(AT.cipherMode, '-plain64'),
    code: 'CORRUPT',
    says: /names no cipher mode/,
  },
  {
    title: 'a slot of no state',
    damage: u32(slotAt(7), 1),
    code: 'CORRUPT',
    says: /key slot 7 is damaged/,
  },
]

const UNUSABLE: Hostile[] = [
  {
    title: 'another cipher',
    damage: text(AT.cipherName, 'twofish'),
    code: 'UNSUPPORTED',
    says: /the cipher "twofish"/,
  },
  {
    title: 'another mode',
    damage: text(AT.cipherMode, 'ctr-plain64'),
    code: 'UNSUPPORTED',
    says: /the cipher mode "ctr"/,
  },
  {
    title: 'another generator',
    damage: text(AT.cipherMode, 'cbc-benbi'),
    code: 'CORRUPT',
    says: /a key of 64 bytes for aes-cbc/,
  },
  {
    title: 'another generator',
    damage: text(AT.cipherMode, 'xts-benbi'),
    code: 'UNSUPPORTED',
    says: /the generator "benbi" of initialization vectors/,
  },
  {
    title: 'no generator',
    damage: text(AT.cipherMode, 'xts'),
    code: 'UNSUPPORTED',
    says: /the generator "none"/,
  },
  {
    title: 'ESSIV without a hash',
    damage: text(AT.cipherMode, 'xts-essiv'),
    code: 'CORRUPT',
    says: /names no hash for essiv/,
  },
  {
    title: 'ESSIV with a digest that is no key',
    damage: text(AT.cipherMode, 'xts-essiv:sha1'),
    code: 'UNSUPPORTED',
    says: /the hash "sha1" for essiv/,
  },
  {
    title: 'ESSIV with a hash of the name of a function',
    damage: text(AT.cipherMode, 'xts-essiv:constructor'),
    code: 'UNSUPPORTED',
    says: /the hash "constructor" for essiv/,
  },
  {
    title: 'another hash',
    damage: text(AT.hash, 'whirlpool'),
    code: 'UNSUPPORTED',
    says: /the hash "whirlpool"/,
  },
  {
    title: 'a hash of node:crypto that LUKS has not',
    damage: text(AT.hash, 'RSA-SHA1'),
    code: 'UNSUPPORTED',
    says: /the hash "RSA-SHA1"/,
  },
  { title: 'no hash', damage: text(AT.hash, ''), code: 'UNSUPPORTED', says: /uses the hash ""/ },
  ...[0, 1, 16, 63, 65, 2 ** 31, U32_MAX].map(bytes => ({
    title: `a key of ${bytes} bytes`,
    damage: u32(AT.keyBytes, bytes),
    code: 'CORRUPT' as const,
    says: new RegExp(`a key of ${bytes} bytes for aes-xts`),
  })),
  {
    title: 'no slot in use',
    damage: u32(slotAt(0), 0xdead),
    code: 'CORRUPT',
    says: /all key slots .* are empty/,
  },
  {
    title: 'no iterations of the digest',
    damage: u32(AT.digestIterations, 0),
    code: 'CORRUPT',
    says: /no iterations for the digest/,
  },
  {
    title: 'too many of them',
    damage: u32(AT.digestIterations, 2 ** 30),
    code: 'UNSUPPORTED',
    says: /would take 1073741830 rounds of sha256, more than 1073741824/,
  },
  {
    title: 'no iterations of a slot',
    damage: u32(slotAt(0) + SLOT_AT.iterations, 0),
    code: 'CORRUPT',
    says: /key slot 0 has no iterations/,
  },
  {
    title: 'too many of them',
    damage: u32(slotAt(0) + SLOT_AT.iterations, 2 ** 29),
    code: 'UNSUPPORTED',
    says: /rounds of sha256, more than/,
  },
  {
    title: 'all that there are',
    damage: u32(slotAt(0) + SLOT_AT.iterations, U32_MAX),
    code: 'UNSUPPORTED',
    says: /rounds of sha256, more than/,
  },
  {
    title: 'too many of all slots',
    damage: all(
      ...Array.from({ length: 8 }, (_, slot) =>
        all(u32(slotAt(slot), 0x00ac71f3), u32(slotAt(slot) + SLOT_AT.iterations, 2 ** 26)),
      ),
    ),
    code: 'UNSUPPORTED',
    says: /rounds of sha256, more than/,
  },
  ...[0, 1, 3999, 4001, U32_MAX].map(stripes => ({
    title: `${stripes} stripes`,
    damage: u32(slotAt(0) + SLOT_AT.stripes, stripes),
    code: 'CORRUPT' as const,
    says: new RegExp(`key slot 0 has ${stripes} stripes, not 4000`),
  })),
  ...[0, 1].map(sector => ({
    title: `a slot at sector ${sector}`,
    damage: u32(slotAt(0) + SLOT_AT.keySectors, sector),
    code: 'CORRUPT' as const,
    says: /key slot 0 lies over the LUKS header/,
  })),
  ...[8 + 7 * 504 + 5, 2 ** 22, U32_MAX].map(sector => ({
    title: `a slot at sector ${sector}`,
    damage: u32(slotAt(0) + SLOT_AT.keySectors, sector),
    code: 'CORRUPT' as const,
    says: /key slot 0 reaches beyond the LUKS header/,
  })),
  {
    title: 'a slot over another',
    damage: all(
      u32(slotAt(5), 0x00ac71f3),
      u32(slotAt(5) + SLOT_AT.iterations, 1),
      u32(slotAt(5) + SLOT_AT.keySectors, 8 + MATERIAL_SECTORS - 1),
    ),
    code: 'CORRUPT',
    says: /key slot 0 lies over key slot 5/,
  },
  {
    title: 'a slot under another',
    damage: all(
      u32(slotAt(5), 0x00ac71f3),
      u32(slotAt(5) + SLOT_AT.iterations, 1),
      u32(slotAt(5) + SLOT_AT.keySectors, 2),
    ),
    code: 'CORRUPT',
    says: /key slot 0 lies over key slot 5/,
  },
]

function refuses(t: Test, act: () => unknown, { code, says }: Hostile): void {
  try {
    act()
    t.fail('it was not refused')
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    t.equal(error.code, code)
    t.match(oneLine(error), says)
    t.match(error.context, { path: 'disk.qcow2', hint: /\w+/ })
  }
}

for (const hostile of UNREADABLE) {
  t.test(`a header with ${hostile.title}`, async t => {
    const content = base()
    hostile.damage(content)
    refuses(t, () => opened(content), hostile)
  })
}

/** Fails when more than headers is read. */
class HeaderStore extends WrappedStore {
  override read(target: Buffer, start: number, length: number, at: number): number {
    if (length > 592) throw new Error('work was begun')
    return super.read(target, start, length, at)
  }
}

for (const hostile of UNUSABLE) {
  t.test(`a header with ${hostile.title}`, async t => {
    const content = base()
    hostile.damage(content)
    const { store, area, header } = opened(content)
    refuses(t, () => checkLuks1(store, area, header), hostile)
    const unlocking = unlockLuks1(new HeaderStore(store), area, header, Buffer.from('secret'))
    await t.rejects(unlocking, { code: hostile.code })
  })
}

t.test('an empty slot is not looked at', async t => {
  const content = base()
  content.fill(0xff, slotAt(3) + SLOT_AT.iterations, slotAt(4))
  isCipher(t, await unlock(opened(content), 'secret'), BASE)
})

t.test('a header that is cut off', async t => {
  const content = base()
  const hostile: Hostile = {
    title: '',
    damage: () => {},
    code: 'CORRUPT',
    says: /the LUKS header is cut off/,
  }
  const store = new MemoryStore('disk.qcow2', content)
  refuses(t, () => readLuks1(store, { offset: 0, length: 591 }), hostile)
  refuses(t, () => readLuks1(store, { offset: 0, length: 0 }), hostile)
  refuses(t, () => readLuks1(store, { offset: 2 ** 52, length: 2 ** 52 }), hostile)
  store.truncate(591)
  refuses(t, () => readLuks1(store, { offset: 0, length: 2 ** 52 }), hostile)
})

t.test('key slots past the end of the file', async t => {
  const { store, area, header } = opened(base())
  const end = area.offset + 8 * SECTOR + 64 * 4000
  store.truncate(end)
  isCipher(t, await unlock({ store, area, header }, 'secret'), BASE)
  store.truncate(end - 1)
  const says = /key slot 0 reaches beyond the end of the file/
  refuses(t, () => checkLuks1(store, area, header), { ...UNUSABLE[0]!, code: 'CORRUPT', says })
})

t.test('a file that shrinks meanwhile', async t => {
  const { store, area, header } = opened(base())
  const short = new (class extends WrappedStore {
    override read(target: Buffer, start: number, length: number, at: number): number {
      return super.read(target, start, length - 1, at)
    }
  })(store)
  const unlocking = unlockLuks1(short, area, header, Buffer.from('secret'))
  await t.rejects(unlocking, { code: 'CORRUPT', message: /key slots are cut off/ })
})

t.test('damage in a key slot locks it', async t => {
  const content = luksContainer({ ...BASE, passphrases: ['secret', 'other'] })
  content[8 * SECTOR + 1000]! ^= 1
  const container = opened(content)
  t.equal(await unlock(container, 'secret'), undefined)
  isCipher(t, await unlock(container, 'other'), BASE)
})

t.test('damaged headers of all kinds', async t => {
  const sound = luksContainer({ ...BASE, passphrases: ['secret', undefined, 'other'] })
  const store = new MemoryStore('disk.qcow2', sound)
  const word = fc.record({
    at: fc.integer({ min: 0, max: 592 / 4 - 1 }).map(i => i * 4),
    value: fc.oneof(
      fc.constantFrom(0, 1, 2, 3, 8, 4000, 0xdead, 0x00ac71f3, 2 ** 31, U32_MAX),
      fc.nat(U32_MAX),
    ),
  })
  const outcomes = { opened: 0, locked: 0, refused: 0 }
  const runs = await holds(fc.array(word, { maxLength: 3 }), 100, async words => {
    const damaged = store.clone()
    const head = Buffer.from(sound.subarray(0, 592))
    for (const { at, value } of words) head.writeUInt32BE(value, at)
    damaged.write(head, 0, head.length, 0)
    const area = { offset: 0, length: sound.length }
    try {
      const header = readLuks1(damaged, area)
      checkLuks1(damaged, area, header)
      // What a user would wait for is no test.
      const iterations = [header.masterKeyIterations, ...header.slots.map(slot => slot.iterations)]
      if (Math.max(...iterations) > 10_000) return
      const spec = await unlockLuks1(damaged, area, header, Buffer.from('secret'))
      if (spec && !Buffer.from(spec.key).equals(BASE.key)) throw new Error('a wrong key')
      outcomes[spec ? 'opened' : 'locked']++
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      outcomes.refused++
    }
  })
  t.ok(runs >= 30, `${runs} headers`)
  t.ok(outcomes.refused > 0 && outcomes.opened + outcomes.locked > 0, JSON.stringify(outcomes))
})
