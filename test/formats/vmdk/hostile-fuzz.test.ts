/** Good VMDK images with some of their bytes or words changed: thousands, each used like a mount. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { buildCowd } from '../../fixtures/cowd-builder.js'
import { noise, prose } from '../../fixtures/model.js'
import { buildSesparse, type SesparseGrain } from '../../fixtures/sesparse-builder.js'
import { type Grain, packed } from '../../fixtures/vmdk-builder.js'
import { vmsdOf } from '../../fixtures/vmsd.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { Watchdog } from '../../support/watchdog.js'
import { descriptor, type Files, monolithic, useHostile, writeFiles } from './hostile-images.js'

/** One for all: it takes its time to start. */
const watchdog = new Watchdog(t)
/** The last use: the one that the end of the time came into goes on, and the next waits for it. */
let turn: Promise<unknown> = Promise.resolve()
/** In a long test 30 times as many. */
const TRIES = 60
const K = 1024

const grain = (seed: number): Grain => ({ kind: 'data', bytes: noise(8 * K, seed) })
const sparse = monolithic({
  version: 2,
  hasZeroGrains: true,
  grains: new Map<number, Grain>([
    [0, grain(1)],
    [1, grain(2)],
    [2, { kind: 'zero' }],
    [100, grain(3)],
  ]),
})
const stream = monolithic({
  isStream: true,
  isCompressed: true,
  grains: new Map<number, Grain>([
    [0, packed(prose(8 * K, 1))],
    [1, packed(noise(8 * K, 2))],
    [90, packed(prose(8 * K, 3))],
  ]),
})
const cowd = buildCowd({
  sectors: 16_384,
  grains: new Map([
    [0, noise(512, 1)],
    [1, noise(512, 2)],
    [9000, noise(512, 3)],
  ]),
})
const sesparse = buildSesparse({
  sectors: 65_536,
  grains: new Map<number, SesparseGrain>([
    [0, { kind: 'data', bytes: noise(4 * K, 1) }],
    [1, { kind: 'unmapped' }],
    [2, { kind: 'zero' }],
    [5000, { kind: 'data', bytes: noise(4 * K, 2) }],
  ]),
})
const overCowd: Files = { 'disk.vmdk': descriptor({ extents: ['RW 16384 VMFSSPARSE "x"'] }) }
const overSesparse: Files = { 'disk.vmdk': descriptor({ extents: ['RW 65536 SESPARSE "x"'] }) }
const overBase: Files = {
  'disk.vmdk': descriptor({ parent: { hint: 'disk-000001.vmdk' }, cid: '3' }),
  'disk-000001.vmdk': descriptor({
    parent: { hint: 'base.vmdk' },
    extents: ['RW 1024 FLAT "flat.bin" 0', 'RW 1024 ZERO'],
  }),
  'base.vmdk': sparse.bytes,
  'flat.bin': noise(512 * K, 9),
  'other.vmdk': descriptor({ parent: { hint: 'disk-000001.vmdk' } }),
  'm.vmx': 'scsi0:0.present = "TRUE"\nscsi0:0.fileName = "disk.vmdk"\n',
  'm.vmsd': vmsdOf(
    [
      { uid: 1, name: 'one', created: 1e15, disks: { 'scsi0:0': 'base.vmdk' } },
      { uid: 2, parent: 1, name: 'two', disks: { 'scsi0:0': 'disk-000001.vmdk' } },
      { uid: 3, parent: 1, name: 'one', disks: { 'scsi0:0': 'other.vmdk', 'scsi0:1': 'x' } },
    ],
    2,
  ),
}

interface Base {
  title: string
  files: Files
  /** The file that is changed. */
  file: string
}

/** What breaks programs: limits, signs, flags, and places of other things in the file. */
const telling = fc.oneof(
  { weight: 3, arbitrary: fc.nat(300).map(BigInt) },
  { weight: 1, arbitrary: fc.nat(300).map(index => (3n << 60n) | BigInt(index)) },
  fc.constantFrom(0x7fffffffn, 0x80000000n, 0xffffffffn, 1n << 32n, 1n << 40n, 1n << 44n),
  fc.constantFrom(1n << 53n, 1n << 60n, 1n << 63n, (1n << 63n) - 1n, (1n << 64n) - 1n),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
)

const binaries: (Base & { regions: readonly number[] })[] = [
  {
    title: 'a sparse image',
    files: { 'disk.vmdk': sparse.bytes },
    file: 'disk.vmdk',
    regions: [
      0,
      0,
      44,
      sparse.descriptorAt,
      sparse.directoryAt,
      sparse.redundantDirectoryAt,
      sparse.tableAt(0),
    ],
  },
  {
    title: 'a stream',
    files: { 'disk.vmdk': stream.bytes },
    file: 'disk.vmdk',
    regions: [
      0,
      44,
      stream.footerAt - 512,
      stream.footerAt,
      stream.footerAt + 44,
      stream.directoryAt,
      stream.tableAt(0),
      stream.placeOf(0),
    ],
  },
  {
    title: 'a COWD extent',
    files: { ...overCowd, x: cowd.bytes },
    file: 'x',
    regions: [0, 0, cowd.directoryEntryAt(0), cowd.entryAt(0), cowd.entryAt(9000)],
  },
  {
    title: 'a seSparse extent',
    files: { ...overSesparse, x: sesparse.bytes },
    file: 'x',
    regions: [0, 80, 144, sesparse.sector.volatile * 512].concat(
      sesparse.directoryEntryAt(0),
      sesparse.entryAt(0),
      sesparse.entryAt(5000),
    ),
  },
]

const byteChange = fc.record({
  region: fc.nat(20),
  offset: fc.oneof(
    fc.nat(16).map(entry => entry * 4),
    fc.nat(100),
  ),
  width: fc.constantFrom(1, 4, 8),
  value: telling,
})

for (const { title, files, file, regions } of binaries) {
  t.test(title, async t => {
    const folder = tempFolder(t)
    writeFiles(folder, files)
    const good = files[file] as Buffer
    await isUsed(folder, file, good)
    const runs = await holds(
      fc.array(byteChange, { minLength: 1, maxLength: 4 }),
      TRIES,
      async all => {
        const bytes = Buffer.from(good)
        for (const { region, offset, width, value } of all) {
          const at = (regions[region % regions.length] as number) + offset
          for (let i = 0; i < width; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn)
        }
        await isUsed(folder, file, bytes)
      },
    )
    await turn
    t.comment(`${runs} images`)
    t.ok(runs >= TRIES, `${runs} images`)
  })
}

const texts: Base[] = [
  { title: 'the descriptor of a child', files: overBase, file: 'disk.vmdk' },
  { title: 'the descriptor of a parent', files: overBase, file: 'disk-000001.vmdk' },
  { title: "a machine's list of snapshots", files: overBase, file: 'm.vmsd' },
  {
    title: 'a list of many extents',
    files: {
      'disk.vmdk': descriptor({
        extents: Array.from({ length: 40 }, (_, i) =>
          i % 3 === 0 ? 'RW 9 ZERO' : `RW ${i} FLAT "flat.bin" ${i}`,
        ),
      }),
      'flat.bin': noise(64 * K, 1),
    },
    file: 'disk.vmdk',
  },
]

/** Words that mean something, in a descriptor or to those who open what it names. */
const word = fc.oneof(
  fc.constantFrom('disk.vmdk', 'disk-000001.vmdk', 'base.vmdk', 'other.vmdk', 'm.vmsd', 'flat.bin'),
  fc.constantFrom('/etc/shadow', '../x', '.', '/', '', 'nbd:x', 'a\0b', 'a|00b', '\\\\x\\y', '|2f'),
  fc.constantFrom('RW', 'NOACCESS', 'FLAT', 'SPARSE', 'SESPARSE', 'ZERO', 'VMFSRDM', 'ffffffff'),
  fc.constantFrom('0', '1', '-1', '2048', '4294967295', '17592186044415', '99999999999999999999'),
  fc.constantFrom('CID', 'parentCID', 'parentFileNameHint', 'encoding', 'snapshot0', 'disk0'),
  fc.constantFrom('"', '=', '#', '\n', '\r', '\t', '\u2028', '\u00a0', '\ufeff', 'UTF-16LE', 'GBK'),
  fc.string({ maxLength: 8 }),
)
const wordChange = fc.record({
  kind: fc.constantFrom('word', 'word', 'word', 'insert', 'remove line', 'repeat line'),
  at: fc.nat(10_000),
  word,
})

for (const { title, files, file } of texts) {
  t.test(title, async t => {
    const folder = tempFolder(t)
    writeFiles(folder, files)
    const good = String(files[file])
    await isUsed(folder, file, good)
    const runs = await holds(
      fc.array(wordChange, { minLength: 1, maxLength: 4 }),
      TRIES,
      async all => {
        const text = all.reduce(changed, good)
        await isUsed(folder, file, text)
      },
    )
    await turn
    t.comment(`${runs} images`)
    t.ok(runs >= TRIES, `${runs} images`)
  })
}

type WordChange = Parameters<Parameters<typeof wordChange.map>[0]>[0]

function changed(text: string, { kind, at, word }: WordChange): string {
  if (kind === 'word' || kind === 'insert') {
    const words = [...text.matchAll(kind === 'word' ? /[^\s"=.]+/g : /\b/g)]
    const match = words[at % Math.max(words.length, 1)]
    if (!match) return word
    return text.slice(0, match.index) + word + text.slice(match.index + match[0].length)
  }
  const lines = text.split('\n')
  const index = at % lines.length
  lines.splice(index, 1, ...(kind === 'remove line' ? [] : Array(2).fill(lines[index])))
  return lines.join('\n')
}

function isUsed(folder: string, file: string, content: string | Buffer): Promise<void> {
  const use = turn.then(async () => {
    writeFileSync(join(folder, file), content)
    const { problems } = await useHostile(watchdog, join(folder, 'disk.vmdk'))
    if (problems.length > 0) throw new Error(problems[0])
  })
  turn = use.catch(() => {})
  return use
}
