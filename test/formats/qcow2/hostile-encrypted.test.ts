/**
 * Encrypted qcow2 images that nobody made in good faith, and damaged ones, opened with their passphrase: one line
 * that says what, or a mount that gives errors where the damage is; never a hang, nor memory or work by an
 * image's word.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { AT, luksContainer, SLOT_AT, slotAt } from '../../crypto/luks-builder.js'
import { noise } from '../../fixtures/model.js'
import { type BuiltImage, buildImage, type Cluster } from '../../fixtures/qcow2-builder.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { Watchdog, type Watched } from '../../support/watchdog.js'

const MAX_GROWTH_BYTES = 150 * 2 ** 20
/** In a long test 30 times as many. */
const TRIES = 30
const K = 1024
const PASSPHRASE = 'open sesame'
const EXTENSION = 0x0537be77

const LUKS = luksContainer({
  mode: 'xts',
  ivGenerator: 'plain64',
  ivHash: undefined,
  key: noise(64, 1),
  hash: 'sha256',
  passphrases: [PASSPHRASE, undefined, 'another'],
})
/** Behind all clusters. */
const LUKS_AT = 256 * K

interface Encrypted {
  readonly bytes: Buffer
  readonly built: BuiltImage
  /** Where the extension says where the header is. */
  readonly areaAt: number
}

/** Clusters whose bytes nobody has encrypted: they read as noise. */
function imageOf(method: 1 | 2): Encrypted {
  const area = Buffer.alloc(16)
  area.writeBigUInt64BE(BigInt(LUKS_AT))
  area.writeBigUInt64BE(BigInt(LUKS.length), 8)
  const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(4 * K, seed) })
  const built = buildImage({
    clusterBits: 12,
    sizeBytes: 1024 * K,
    clusters: new Map<number, Cluster>([
      [0, data(1)],
      [1, data(2)],
      [7, { kind: 'zero' }],
    ]),
    snapshots: [{ name: 'one', clusters: new Map([[0, data(4)]]) }],
    extensions: method === 2 ? [{ type: EXTENSION, data: area }] : [],
  })
  const plain = built.bytes()
  plain.writeUInt32BE(method, 32)
  const bytes = method === 1 ? plain : Buffer.alloc(LUKS_AT + LUKS.length)
  plain.copy(bytes)
  if (method === 2) LUKS.copy(bytes, LUKS_AT)
  return { bytes, built, areaAt: plain.indexOf(area) }
}

const AES_IMAGE = imageOf(1)
const LUKS_IMAGE = imageOf(2)

interface Case {
  readonly title: string
  readonly image?: Encrypted
  readonly damage?: (file: Buffer, built: BuiltImage) => Buffer | undefined
  readonly passphrase?: string
  /** What opening must say. Without it the image opens. */
  readonly says?: RegExp
  readonly code?: string
  /** Whether a read, a seek or a count meets the damage. */
  readonly isDamaged?: boolean
}

const u32 = (at: number, value: number) => (file: Buffer) => {
  file.writeUInt32BE(value, at)
  return file
}
const u64 = (at: number, value: bigint) => (file: Buffer) => {
  file.writeBigUInt64BE(value, at)
  return file
}
const text = (at: number, value: string) => (file: Buffer) => {
  file.fill(0, at, at + 32).write(value, at)
  return file
}
const inLuks = (field: number) => LUKS_AT + field
const inSlot = (slot: number, field: number) => LUKS_AT + slotAt(slot) + field
const CORRUPT = 'CORRUPT'
const UNSUPPORTED = 'UNSUPPORTED'
const { areaAt } = LUKS_IMAGE

const cases: Case[] = [
  { title: 'nothing is false' },
  { title: 'nothing is false: AES', image: AES_IMAGE },
  { title: 'the second passphrase', passphrase: 'another' },
  {
    title: 'a wrong passphrase',
    passphrase: 'wrong',
    says: /passphrase is wrong/,
    code: 'REFUSED',
  },
  {
    title: 'method 3',
    damage: u32(32, 3),
    says: /encryption method 3/,
    code: CORRUPT,
  },
  {
    title: 'LUKS without a header',
    image: AES_IMAGE,
    damage: u32(32, 2),
    says: /says nowhere where the LUKS header is/,
    code: CORRUPT,
  },
  {
    title: 'a header that is cut off',
    damage: u64(areaAt + 8, 591n),
    says: /LUKS header is cut off/,
    code: CORRUPT,
  },
  {
    title: 'a header beyond the end',
    damage: u64(areaAt, 1n << 40n),
    says: /LUKS header is cut off|beyond the end|a LUKS header of .* is impossible/,
    code: CORRUPT,
  },
  {
    title: 'a header beyond 2^53',
    damage: u64(areaAt, 1n << 62n),
    says: /says nowhere where/,
    code: CORRUPT,
  },
  {
    title: 'a header of 2^64 - 1 bytes',
    damage: u64(areaAt + 8, (1n << 64n) - 1n),
    says: /says nowhere where/,
    code: CORRUPT,
  },
  {
    title: 'a header that is the image’s',
    damage: u64(areaAt, 0n),
    says: /no LUKS header at 0|overlaps|not aligned/,
    code: CORRUPT,
  },
  { title: 'no magic', damage: u32(LUKS_AT, 0), says: /there is no LUKS header at/, code: CORRUPT },
  {
    title: 'version 2 of LUKS',
    damage: file => {
      file.writeUInt16BE(2, inLuks(AT.version))
      return file
    },
    says: /has version 2, not 1/,
    code: CORRUPT,
  },
  {
    title: 'a cipher that is not known',
    damage: text(inLuks(AT.cipherName), 'twofish'),
    says: /uses the cipher "twofish"/,
    code: UNSUPPORTED,
  },
  {
    title: 'a cipher of control characters',
    damage: text(inLuks(AT.cipherName), '\x1b[2J\n\r'),
    says: /uses the cipher "\\x1b\[2J\\x0a\\x0d"/,
    code: UNSUPPORTED,
  },
  {
    title: 'a mode that is not known',
    damage: text(inLuks(AT.cipherMode), 'ctr-plain64'),
    says: /uses the cipher mode "ctr"/,
    code: UNSUPPORTED,
  },
  {
    title: 'no mode',
    damage: text(inLuks(AT.cipherMode), ''),
    says: /names no cipher mode/,
    code: CORRUPT,
  },
  {
    title: 'a generator that is not known',
    damage: text(inLuks(AT.cipherMode), 'xts-benbi'),
    says: /uses the generator "benbi"/,
    code: UNSUPPORTED,
  },
  {
    title: 'essiv without a hash',
    damage: text(inLuks(AT.cipherMode), 'cbc-essiv'),
    says: /key of 64 bytes|names no hash for essiv/,
    code: CORRUPT,
  },
  {
    title: 'a hash that is not known',
    damage: text(inLuks(AT.hash), 'whirlpool'),
    says: /uses the hash "whirlpool"/,
    code: UNSUPPORTED,
  },
  {
    title: 'a hash of JavaScript',
    damage: text(inLuks(AT.hash), '__proto__'),
    says: /uses the hash "__proto__"/,
    code: UNSUPPORTED,
  },
  ...[0, 1, 31, 65, 2 ** 31, 2 ** 32 - 1].map(bytes => ({
    title: `a key of ${bytes} bytes`,
    damage: u32(inLuks(AT.keyBytes), bytes),
    says: new RegExp(`a key of ${bytes} bytes`),
    code: CORRUPT,
  })),
  {
    title: 'no iterations for the digest',
    damage: u32(inLuks(AT.digestIterations), 0),
    says: /no iterations for the digest/,
    code: CORRUPT,
  },
  {
    title: '2^32 - 1 iterations for the digest',
    damage: u32(inLuks(AT.digestIterations), 2 ** 32 - 1),
    says: /would take \d+ rounds of "?sha256/,
    code: UNSUPPORTED,
  },
  {
    title: 'no iterations for a slot',
    damage: u32(inSlot(0, SLOT_AT.iterations), 0),
    says: /key slot 0 has no iterations/,
    code: CORRUPT,
  },
  {
    title: '2^32 - 1 iterations for a slot',
    damage: u32(inSlot(2, SLOT_AT.iterations), 2 ** 32 - 1),
    says: /would take \d+ rounds of "?sha256/,
    code: UNSUPPORTED,
  },
  ...[0, 1, 3999, 2 ** 32 - 1].map(stripes => ({
    title: `${stripes} stripes`,
    damage: u32(inSlot(0, SLOT_AT.stripes), stripes),
    says: new RegExp(`key slot 0 has ${stripes} stripes`),
    code: CORRUPT,
  })),
  {
    title: 'key material over the header',
    damage: u32(inSlot(0, SLOT_AT.keySectors), 1),
    says: /key slot 0 lies over the LUKS header/,
    code: CORRUPT,
  },
  {
    title: 'key material over that of another slot',
    damage: u32(inSlot(0, SLOT_AT.keySectors), 8 + 504 * 2 + 1),
    says: /key slot 0 lies over key slot 2/,
    code: CORRUPT,
  },
  {
    title: 'key material beyond the end',
    damage: u32(inSlot(0, SLOT_AT.keySectors), 2 ** 32 - 1),
    says: /key slot 0 reaches beyond/,
    code: CORRUPT,
  },
  {
    title: 'a slot that is neither used nor free',
    damage: u32(inSlot(5, SLOT_AT.state), 0x12345678),
    says: /key slot 5 is damaged/,
    code: CORRUPT,
  },
  {
    title: 'no slot that is used',
    damage: f => u32(inSlot(2, SLOT_AT.state), 0xdead)(u32(inSlot(0, SLOT_AT.state), 0xdead)(f)),
    says: /all key slots of its LUKS header are empty/,
    code: CORRUPT,
  },
  {
    title: 'another salt for the digest',
    damage: u32(inLuks(AT.digestSalt), 0x12345678),
    says: /passphrase is wrong/,
    code: 'REFUSED',
  },
  {
    title: 'the file ends within the key material',
    damage: file => file.subarray(0, LUKS_AT + 10_000),
    says: /reaches beyond the end of the file|lies beyond the end of the file|a LUKS header of .* is impossible/,
    code: CORRUPT,
  },
  {
    title: 'a cluster beyond the end',
    damage: (f, b) => u64(b.l2EntryAt(0), 1n << 40n)(f),
    isDamaged: true,
  },
  {
    title: 'a cluster that is not aligned',
    damage: (f, b) => u64(b.l2EntryAt(0), 0x1200n)(f),
    isDamaged: true,
  },
  {
    title: 'a cluster beyond the end: AES',
    image: AES_IMAGE,
    damage: (f, b) => u64(b.l2EntryAt(0), 1n << 40n)(f),
    isDamaged: true,
  },
  {
    title: 'a cluster in the LUKS header',
    damage: (f, b) => u64(b.l2EntryAt(0), (1n << 63n) | BigInt(LUKS_AT))(f),
  },
]

const watchdog = new Watchdog(t)

const problemsOf = ({ hangs, unexpected, milliseconds }: Watched): string[] =>
  hangs ? [`no answer after ${Math.round(milliseconds)} ms`] : [...unexpected]

t.test('one fault each', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  for (const each of cases) {
    const { title, damage, passphrase = PASSPHRASE, says, code, isDamaged } = each
    const { bytes, built } = each.image ?? LUKS_IMAGE
    await t.test(title, async t => {
      writeFileSync(image, damage?.(Buffer.from(bytes), built) ?? bytes)
      const outcome = await watchdog.exercise(image, { passphrase })
      t.same(problemsOf(outcome), [])
      t.ok(outcome.grownBytes < MAX_GROWTH_BYTES, `grew by ${outcome.grownBytes} bytes`)
      if (says) {
        t.match(outcome.refusal, { line: says, code })
        t.ok(outcome.refusal?.line.startsWith(`${image}: `), 'names the file')
        t.ok(outcome.refusal?.line.includes('; '), 'says what to do')
      } else {
        t.equal(outcome.refusal, undefined, 'opens')
        t.equal(outcome.damages > 0, isDamaged ?? false, `${outcome.damages} errors met`)
      }
    })
  }
})

t.test('without its passphrase', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  for (const { bytes } of [AES_IMAGE, LUKS_IMAGE]) {
    writeFileSync(image, bytes)
    const { refusal, unexpected } = await watchdog.exercise(image)
    t.match(refusal, { code: 'REFUSED', line: /it is encrypted/ })
    t.same(unexpected, [])
  }
})

const telling = fc.oneof(
  { weight: 3, arbitrary: fc.nat(80).map(index => BigInt(index) << 12n) },
  { weight: 3, arbitrary: fc.nat(5000).map(BigInt) },
  { weight: 2, arbitrary: fc.nat(63).map(bit => 1n << BigInt(bit)) },
  fc.constantFrom(0x00ac71f3n, 0xdeadn, 0x7fffffffn, 0x80000000n, 0xffffffffn, (1n << 64n) - 1n),
)
const change = fc.record({
  region: fc.nat(40),
  offset: fc.oneof(
    fc.nat(5).map(entry => entry * 8),
    fc.nat(60),
  ),
  width: fc.constantFrom(1, 4, 8),
  value: telling,
})

for (const [title, { bytes: good, built }] of [
  ['AES', AES_IMAGE],
  ['LUKS', LUKS_IMAGE],
] as const) {
  t.test(`fields changed: ${title}`, async t => {
    const image = join(tempFolder(t), 'disk.qcow2')
    const l2At = built.l2EntryAt(0)
    const regions = [0, 24, 32, built.l1At, l2At, built.snapshotsAt]
    if (title === 'LUKS') {
      const slots = [0, 1, 2].map(slot => inSlot(slot, 0))
      regions.push(
        areaAt,
        areaAt,
        LUKS_AT,
        inLuks(AT.payload),
        inLuks(AT.digestIterations),
        ...slots,
      )
    }
    /** The one that the end of the time came into goes on. */
    let last: Promise<unknown> = Promise.resolve()
    const changes = fc.array(change, { minLength: 1, maxLength: 4 })
    const runs = await holds(changes, TRIES, async all => {
      const bytes = Buffer.from(good)
      for (const { region, offset, width, value } of all) {
        const at = (regions[region % regions.length] as number) + offset
        for (let i = 0; i < width; i++) {
          bytes[at + i] = Number((value >> BigInt(8 * (width - 1 - i))) & 0xffn)
        }
      }
      await last
      writeFileSync(image, bytes)
      const outcome = watchdog.exercise(image, { passphrase: PASSPHRASE })
      last = outcome
      const problems = problemsOf(await outcome)
      if (problems.length > 0) throw new Error(problems[0])
    })
    await last
    t.comment(`${runs} images`)
    t.ok(runs >= TRIES, `${runs} images`)
  })
}
