/** Sectors against OpenSSL's own modes, a simple reference and published vectors; fast ways against plain ones. */
import { createCipheriv } from 'node:crypto'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { evpBlockCipher, nodeBlockCipher } from '../../src/crypto/block-cipher.js'
import { legacyAesSpec } from '../../src/crypto/legacy-aes.js'
import {
  type CipherEngine,
  createSectorCipher,
  fastEngine,
  plainEngine,
} from '../../src/crypto/sector-cipher.js'
import { simdWorkspace } from '../../src/crypto/simd-workspace.js'
import { CIPHER_MODES, type IvGenerator } from '../../src/crypto/spec.js'
import { plainWorkspace, WORKSPACE, WORKSPACE_SECTORS } from '../../src/crypto/workspace.js'
import { noise } from '../fixtures/model.js'
import { holds } from '../support/property.js'
import { encrypted, ivOf, type PlainSpec, SECTOR, shared } from './reference.js'

const evp = evpBlockCipher()
const simd = simdWorkspace()
const ENGINES: { title: string; engine: CipherEngine }[] = [
  { title: 'the fastest way', engine: fastEngine() },
  { title: 'the plain way', engine: plainEngine() },
]
if (evp) {
  const engine = { makeBlockCipher: evp, workspace: plainWorkspace() }
  ENGINES.push({ title: 'EVP and words', engine })
}
if (simd) {
  const engine = { makeBlockCipher: nodeBlockCipher, workspace: simd }
  ENGINES.push({ title: 'node:crypto and SIMD', engine })
}

/** Sectors where numbers of 32 bits change their sign, wrap or end, and the last that there is. */
const NUMBERS = [0, 1, 2 ** 31 - 2, 2 ** 31, 2 ** 32 - 3, 2 ** 32, 2 ** 33 - 1, 2 ** 52 + 7]
/** Lengths around the size of the piece that is worked on at once. */
const LENGTHS = [1, 2, 7, WORKSPACE_SECTORS - 1, WORKSPACE_SECTORS, WORKSPACE_SECTORS + 1, 300]
const LAST_SECTOR = 2 ** 53 - 1

function specs(): PlainSpec[] {
  const all: PlainSpec[] = []
  const ivs: [IvGenerator, string | undefined][] = [
    ['plain', undefined],
    ['plain64', undefined],
    ['essiv', 'sha256'],
    ['essiv', 'md5'],
  ]
  for (const mode of CIPHER_MODES) {
    for (const bytes of [16, 24, 32]) {
      const key = noise(mode === 'xts' ? 2 * bytes : bytes, bytes)
      for (const [ivGenerator, ivHash] of mode === 'ecb' ? [['none', undefined] as const] : ivs) {
        all.push({ mode, ivGenerator, ivHash, key })
      }
    }
  }
  return all
}

const titleOf = ({ mode, ivGenerator, ivHash, key }: PlainSpec) =>
  [`${key.length} bytes`, mode, ivGenerator, ivHash].filter(Boolean).join(' ')

/** Buffers around the sectors: the bytes beside them must stay as they were. */
interface Place {
  readonly start: number
  readonly at: number
  readonly inPlace: boolean
  readonly isShared: boolean
}

function agrees(
  t: Test,
  engine: CipherEngine,
  spec: PlainSpec,
  plain: Buffer,
  sector: number,
  { start, at, inPlace, isShared }: Place,
): void {
  const expected = encrypted(spec, plain, sector)
  const cipher = createSectorCipher(shared(spec), engine)
  for (const what of ['encrypt', 'decrypt'] as const) {
    const [from, to] = what === 'encrypt' ? [plain, expected] : [expected, plain]
    const source = around(from, start, isShared)
    const target = inPlace ? source : around(Buffer.alloc(from.length), at, isShared)
    const into = inPlace ? start : at
    cipher[what](source, start, from.length, target, into, sector)
    const wanted = around(to, into, isShared)
    if (!target.equals(wanted)) t.fail(`${what}: ${titleOf(spec)}, ${plain.length}, ${sector}`)
    if (!inPlace && !source.equals(around(from, start, isShared))) t.fail(`${what}: the source`)
  }
}

/** `content` from `at` on in a buffer of noise, which itself starts at an odd place of its memory. */
function around(content: Buffer, at: number, isShared: boolean): Buffer {
  const bytes = at + content.length + 9
  const memory = isShared ? new SharedArrayBuffer(bytes + 3) : new ArrayBuffer(bytes + 3)
  const buffer = Buffer.from(memory, 3, bytes)
  noise(bytes, 7).copy(buffer)
  content.copy(buffer, at)
  return buffer
}

for (const { title, engine } of ENGINES) {
  t.test(title, async t => {
    const random = noise(300 * SECTOR, 1)
    for (const spec of specs()) {
      for (const [i, sector] of NUMBERS.entries()) {
        const length = LENGTHS[i % LENGTHS.length]! * SECTOR
        const place = { start: i, at: 3 * i + 1, inPlace: i % 3 === 0, isShared: i % 2 === 0 }
        agrees(t, engine, spec, random.subarray(0, length), sector, place)
      }
      const place = { start: 0, at: 0, inPlace: false, isShared: false }
      agrees(t, engine, spec, random.subarray(0, 2 * SECTOR), LAST_SECTOR - 1, place)
      t.pass(titleOf(spec))
    }
  })
}

t.test('whatever is asked for', async t => {
  const request = fc.record({
    spec: fc.constantFrom(...specs()),
    engine: fc.constantFrom(...ENGINES),
    sectors: fc.integer({ min: 1, max: 3 * WORKSPACE_SECTORS }),
    seed: fc.nat(1000),
    sector: fc.oneof(
      fc.maxSafeNat().map(n => Math.min(n, LAST_SECTOR - 3 * WORKSPACE_SECTORS)),
      fc.integer({ min: 0, max: 500 }).map(n => 2 ** 32 - n),
    ),
    place: fc.record({
      start: fc.nat(40),
      at: fc.nat(40),
      inPlace: fc.boolean(),
      isShared: fc.boolean(),
    }),
  })
  const runs = await holds(request, 80, ({ spec, engine, sectors, seed, sector, place }) =>
    agrees(t, engine.engine, spec, noise(sectors * SECTOR, seed), sector, place),
  )
  t.ok(runs >= 20, `${runs} requests`)
})

t.test('one object serves requests of all kinds', async t => {
  for (const mode of CIPHER_MODES) {
    const spec: PlainSpec = {
      mode,
      ivGenerator: mode === 'ecb' ? 'none' : 'plain64',
      ivHash: undefined,
      key: noise(mode === 'xts' ? 64 : 32, 3),
    }
    const cipher = createSectorCipher(shared(spec))
    const other = createSectorCipher(shared({ ...spec, key: noise(spec.key.length, 4) }))
    for (const sectors of [1, 200, 3, 129]) {
      const plain = noise(sectors * SECTOR, sectors)
      const target = Buffer.alloc(plain.length)
      cipher.encrypt(plain, 0, plain.length, target, 0, sectors)
      t.ok(target.equals(encrypted(spec, plain, sectors)), `${mode}: ${sectors} sectors`)
      other.encrypt(plain, 0, plain.length, Buffer.alloc(plain.length), 0, 5)
      cipher.decrypt(target, 0, plain.length, target, 0, sectors)
      t.ok(target.equals(plain))
    }
  }
})

t.test("OpenSSL's own modes", async t => {
  const plain = noise(SECTOR, 9)
  const target = Buffer.alloc(SECTOR)
  for (const spec of specs()) {
    const bits = (spec.key.length / (spec.mode === 'xts' ? 2 : 1)) * 8
    // OpenSSL has no XTS with AES-192.
    if (spec.mode === 'xts' && bits === 192) continue
    for (const sector of NUMBERS) {
      const iv = spec.mode === 'ecb' ? null : ivOf(spec, sector)
      const cipher = createCipheriv(`aes-${bits}-${spec.mode}`, spec.key, iv).setAutoPadding(false)
      createSectorCipher(shared(spec)).encrypt(plain, 0, SECTOR, target, 0, sector)
      t.ok(target.equals(cipher.update(plain)), `${titleOf(spec)}, sector ${sector}`)
    }
  }
})

/** Of IEEE 1619-2007, annex B: the data units of 512 bytes, and what of the shorter ones a sector has in its first blocks. */
const E = '27182818284590452353602874713526'
const E256 = '2718281828459045235360287471352662497757247093699959574966967627'
const PI = '31415926535897932384626433832795'
const PI256 = '3141592653589793238462643383279502884197169399375105820974944592'
const COUNTING = Buffer.from(Array.from({ length: SECTOR }, (_, i) => i % 256))
const VECTORS = [
  {
    vector: 1,
    key: '00'.repeat(32),
    sector: 0,
    plain: Buffer.alloc(SECTOR),
    start: '917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e',
  },
  {
    vector: 2,
    key: '11'.repeat(16) + '22'.repeat(16),
    sector: 0x3333333333,
    plain: Buffer.alloc(SECTOR, 0x44),
    start: 'c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0',
  },
  {
    vector: 3,
    key: `fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0${'22'.repeat(16)}`,
    sector: 0x3333333333,
    plain: Buffer.alloc(SECTOR, 0x44),
    start: 'af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89',
  },
  {
    vector: 4,
    key: E + PI,
    sector: 0,
    plain: COUNTING,
    start: '27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c',
    end: 'eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568',
  },
  {
    vector: 10,
    key: E256 + PI256,
    sector: 0xff,
    plain: COUNTING,
    start: '1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b',
    end: 'd38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151',
  },
]
for (const { vector, key, sector, plain, start, end = '' } of VECTORS) {
  t.test(`IEEE 1619-2007, vector ${vector}`, async t => {
    const bytes = Buffer.from(key, 'hex')
    for (const { title, engine } of ENGINES) {
      const spec = { mode: 'xts', ivGenerator: 'plain64', ivHash: undefined, key: bytes } as const
      const target = Buffer.alloc(SECTOR)
      createSectorCipher(shared(spec), engine).encrypt(plain, 0, SECTOR, target, 0, sector)
      t.ok(target.toString('hex').startsWith(start), title)
      t.ok(target.toString('hex').endsWith(end), title)
    }
  })
}

t.test('invalid requests', async t => {
  for (const mode of CIPHER_MODES) {
    const ivGenerator = mode === 'ecb' ? 'none' : 'plain64'
    const cipher = createSectorCipher(
      shared({ mode, ivGenerator, ivHash: undefined, key: noise(32, 1) }),
    )
    const cases = [
      { title: 'nothing', length: 0 },
      { title: 'half a sector', length: 256 },
      { title: 'less than nothing', length: -512 },
      { title: 'no number', length: Number.NaN },
      { title: 'more than the source has', start: 1 },
      { title: 'before the source', start: -1 },
      { title: 'more than the target has', at: 600 },
      { title: 'before the target', at: -512 },
      { title: 'a place that is no number', at: 0.5 },
      { title: 'a sector below 0', sector: -1 },
      { title: 'a sector that is none', sector: 0.5 },
      { title: 'beyond the last sector', length: 1024, sector: LAST_SECTOR },
    ]
    for (const { title, start = 0, length = SECTOR, at = 0, sector = 0 } of cases) {
      const source = Buffer.alloc(length === 1024 ? 1024 : SECTOR)
      const target = Buffer.alloc(1024)
      const run = () => cipher.encrypt(source, start, length, target, at, sector)
      t.throws(run, RangeError, `${mode}: ${title}`)
      t.ok(target.equals(Buffer.alloc(1024)))
    }
  }
})

t.test('an error does not spoil the chain of CBC', async t => {
  let callsLeft = Number.POSITIVE_INFINITY
  const engine: CipherEngine = {
    workspace: plainWorkspace(),
    makeBlockCipher: (what, key) => {
      const transform = nodeBlockCipher(what, key)
      return (source, target, bytes) => {
        transform(source, target, bytes)
        if (callsLeft-- === 0) throw new Error('failed')
      }
    },
  }
  const spec = {
    mode: 'cbc',
    ivGenerator: 'plain64',
    ivHash: undefined,
    key: noise(16, 1),
  } as const
  const cipher = createSectorCipher(shared(spec), engine)
  const plain = noise(4 * SECTOR, 2)
  const target = Buffer.alloc(plain.length)
  const run = () => cipher.encrypt(plain, 0, plain.length, target, 0, 7)
  run()
  callsLeft = 1
  t.throws(run, /failed/)
  callsLeft = Number.POSITIVE_INFINITY
  run()
  t.ok(target.equals(encrypted(spec, plain, 7)))
})

t.test('EVP', evp ? {} : { skip: 'this node does not export OpenSSL' }, async t => {
  t.equal(fastEngine().makeBlockCipher.toString(), evp?.toString(), 'it is the fastest')
  t.throws(() => evp?.('ecb-encrypt', noise(17, 1)), 'a key of no size')
})

t.test('SIMD', simd ? {} : { skip: 'no WebAssembly with SIMD' }, async t => {
  const plain = plainWorkspace()
  for (const sectors of [1, 2, WORKSPACE_SECTORS]) {
    const start = noise(WORKSPACE.end, sectors)
    const run = (act: (workspace: typeof plain) => void, what: string) => {
      const [a, b] = [plain, simd!].map(workspace => {
        start.copy(workspace.memory)
        act(workspace)
        return Buffer.from(workspace.memory.subarray(0, WORKSPACE.end))
      })
      t.ok(a?.equals(b!), `${what}: ${sectors} sectors`)
      t.notOk(a?.equals(start))
    }
    run(workspace => workspace.addTweaks(sectors), 'tweaks')
    run(workspace => workspace.addMasks(sectors * SECTOR), 'masks')
  }
})

t.test('without SIMD', async t => {
  const saved = Object.getOwnPropertyDescriptor(globalThis, 'WebAssembly')!
  t.teardown(() => Object.defineProperty(globalThis, 'WebAssembly', saved))
  Object.defineProperty(globalThis, 'WebAssembly', { ...saved, value: { validate: () => false } })
  t.equal(simdWorkspace(), undefined)
  Object.defineProperty(globalThis, 'WebAssembly', { ...saved, value: undefined })
  t.equal(simdWorkspace(), undefined)
  t.equal(fastEngine().workspace.memory.length, WORKSPACE.end)
})

t.test('AES of qcow', async t => {
  const keyOf = (passphrase: string | Buffer) => {
    const { key, ...rest } = legacyAesSpec(Buffer.from(passphrase))
    t.same(rest, { mode: 'cbc', ivGenerator: 'plain64', ivHash: undefined })
    return Buffer.from(key).toString('latin1')
  }
  t.equal(keyOf('secret'), `secret${'\0'.repeat(10)}`)
  t.equal(keyOf('sixteen byte key'), 'sixteen byte key')
  t.equal(keyOf('sixteen byte key and more'), 'sixteen byte key')
  t.equal(keyOf(''), '\0'.repeat(16))
})
