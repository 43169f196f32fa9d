/**
 * VMDK images, and machines' lists of snapshots, that nobody made in good faith: one line that says what,
 * or a mount that gives errors where the damage is; never a hang, a file left open, nor memory by their
 * word. Each is opened with all that it names, and used as a mount uses it.
 */
import { spawnSync } from 'node:child_process'
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { OpenOptions } from '../../../src/image/opening/chain.js'
import { buildCowd } from '../../fixtures/cowd-builder.js'
import { noise, prose } from '../../fixtures/model.js'
import { buildImage } from '../../fixtures/qcow2-builder.js'
import { buildSesparse } from '../../fixtures/sesparse-builder.js'
import { type Grain, HEADER_AT, packed } from '../../fixtures/vmdk-builder.js'
import { type SnapshotEntry, vmsdOf } from '../../fixtures/vmsd.js'
import { tempFolder } from '../../support/run.js'
import { Watchdog } from '../../support/watchdog.js'
import {
  catalogued,
  descriptor,
  type Files,
  monolithic,
  useHostile,
  writeFiles,
} from './hostile-images.js'

const K = 1024
/** One for all: it takes its time to start. */
const watchdog = new Watchdog(t)
const MAX_GROWTH_BYTES = 150 * K * K

interface Case {
  title: string
  /** `disk.vmdk` among them. */
  files: Files
  /** What else the folder has. */
  prepare?: (folder: string) => void
  options?: OpenOptions
  /** What opening must say. Without it the image opens. */
  says?: RegExp
  code?: string
  /** Whether a read, a seek or a count meets the damage. */
  isDamaged?: boolean
  /** The files of the mount, without `.raw`. */
  shows?: readonly string[]
  /** A warning that there is. */
  warns?: RegExp
  limitMs?: number
}

const flat = noise(64 * K, 1)
const named = (...extents: string[]): Files => ({
  'disk.vmdk': descriptor({ extents }),
  'flat.bin': flat,
})
const makeFifo = (name: string) => (folder: string) => {
  spawnSync('mkfifo', [join(folder, name)])
}
const makeSparse = (name: string, sizeBytes: number) => (folder: string) => {
  const fd = openSync(join(folder, name), 'w')
  ftruncateSync(fd, sizeBytes)
  closeSync(fd)
}

const names: Case[] = [
  { title: 'nothing is false', files: named('RW 128 FLAT "flat.bin" 0') },
  {
    title: 'itself as a sparse extent',
    files: named('RW 128 SPARSE "disk.vmdk"'),
    says: /"disk.vmdk" is not sparse/,
    code: 'CORRUPT',
  },
  {
    title: 'itself as a flat extent',
    files: named('RW 1 FLAT "disk.vmdk" 0'),
    warns: /missing/,
    isDamaged: true,
  },
  {
    title: 'itself by a link',
    files: named('RW 1 FLAT "link" 0'),
    prepare: linkTo('disk.vmdk'),
    isDamaged: true,
  },
  {
    title: 'another descriptor that names it',
    files: {
      'disk.vmdk': descriptor({ extents: ['RW 2048 SPARSE "other.vmdk"'] }),
      'other.vmdk': descriptor({ extents: ['RW 2048 SPARSE "disk.vmdk"'] }),
    },
    says: /"other.vmdk" is not sparse/,
    code: 'CORRUPT',
  },
  {
    title: 'an extent twice',
    files: named('RW 128 FLAT "flat.bin" 0', 'RW 64 FLAT "flat.bin" 64'),
  },
  ...(
    [
      ['/etc/shadow', '/etc/shadow', /outside the image's folder/, 'REFUSED'],
      ['a folder above', '../x', /outside the image's folder/, 'REFUSED'],
      ['a folder far above', '../../../../../../etc/shadow', /outside/, 'REFUSED'],
      ['a path of Windows', 'C:\\disks\\x.vmdk', /protocol/, 'UNSUPPORTED'],
      ['a device', '/dev/zero', /outside the image's folder/, 'REFUSED'],
      ['the folder itself', '.', /a folder/, 'REFUSED'],
      ['a FIFO', 'fifo', /a FIFO/, 'REFUSED'],
      ['a link that leads out', 'link', /outside the image's folder/, 'REFUSED'],
      [
        'a URL',
        'https://example.org/x.vmdk',
        /not on this machine; allow it with --allow-path/,
        'REFUSED',
      ],
      ['NBD', 'nbd:localhost:10809', /protocol/, 'UNSUPPORTED'],
      ['JSON', 'json:{"driver":"null-co"}', /protocol/, 'UNSUPPORTED'],
      ['screen codes', '\x1b[2J\x07', /\\x1b\[2J\\x07/, 'MISSING'],
      ['a separator of lines', 'a\u2028b\u2029c', /no such file/, 'MISSING'],
      ['a name of 300 characters', 'x'.repeat(300), /too long|no such file/, 'MISSING'],
    ] as const
  ).flatMap(([title, name, says, code]): Case[] => {
    const prepare = (folder: string) => {
      makeFifo('fifo')(folder)
      linkTo('/etc/shadow')(folder)
    }
    const child = descriptor({ parent: { hint: name } })
    // No text with control characters is taken for a descriptor by itself.
    const options: OpenOptions = { format: 'vmdk' }
    return [
      {
        title: `an extent: ${title}`,
        files: named(`RW 1 FLAT "${name}" 0`),
        prepare,
        options,
        says,
        code,
      },
      { title: `a parent: ${title}`, files: { 'disk.vmdk': child }, prepare, options, says, code },
    ]
  }),
  {
    title: '8192 extents of one file',
    files: named(...Array.from({ length: 8192 }, (_, i) => `RW 1 FLAT "flat.bin" ${i % 128}`)),
  },
  {
    title: '8193 extents',
    files: named(...Array.from({ length: 8193 }, () => 'RW 1 ZERO')),
    says: /more than 8192 extents/,
    code: 'CORRUPT',
  },
  {
    title: 'an extent of no sectors',
    files: named('RW 0 FLAT "flat.bin" 0', 'RW 0 ZERO', 'RW 8 FLAT "flat.bin" 8', 'RW 0 ZERO'),
  },
  { title: 'a disk of no sectors', files: named('RW 0 FLAT "flat.bin" 0') },
  {
    title: 'an extent of 2^60 sectors',
    files: named(`RW ${2 ** 60} ZERO`),
    says: /over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'extents that sum beyond 2^53 bytes',
    files: named(`RW ${2 ** 43} ZERO`, `RW ${2 ** 43} ZERO`),
    says: /over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'an extent of a number of 400 digits',
    files: named(`RW ${'9'.repeat(400)} ZERO`),
    says: /over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a disk of 2^53 bytes, nearly, with data at its end',
    files: named(`RW ${2 ** 44 - 257} ZERO`, 'RW 128 FLAT "flat.bin" 0'),
  },
  {
    title: 'a flat extent of 2^52 bytes of a short file',
    files: named(`RW ${2 ** 43} FLAT "flat.bin" 0`),
    warns: /bytes are missing/,
    isDamaged: true,
  },
  {
    title: 'a flat extent far past the end of its file',
    files: named(`RW 128 FLAT "flat.bin" ${2 ** 43}`),
    warns: /bytes are missing/,
    isDamaged: true,
  },
  {
    title: 'a flat extent past 2^53 bytes',
    files: named(`RW 128 FLAT "flat.bin" ${2 ** 44}`),
    says: /beyond 2\^53 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'an extent line of 100000 quotes',
    files: named(`RW 1 FLAT "${'" 0 '.repeat(25_000)}" 0`),
    says: /a line has more than/,
    code: 'CORRUPT',
  },
  {
    title: 'a descriptor of 2 MiB',
    files: { 'disk.vmdk': descriptor({ more: '#\n'.repeat(K * K) }) },
    says: /too long/,
    code: 'CORRUPT',
  },
  {
    title: 'a descriptor of 2^40 bytes',
    files: {},
    prepare: folder => {
      writeFileSync(join(folder, 'disk.vmdk'), descriptor())
      const fd = openSync(join(folder, 'disk.vmdk'), 'r+')
      ftruncateSync(fd, 2 ** 40)
      closeSync(fd)
    },
    says: /too long/,
    code: 'CORRUPT',
  },
  {
    title: 'an extent type with a separator of lines',
    files: named('RW 1 FL\u2028AT "flat.bin" 0'),
    says: /type is not known/,
    code: 'UNSUPPORTED',
  },
]

const child = (hint: string, more: object = {}): string => descriptor({ parent: { hint }, ...more })

const parents: Case[] = [
  {
    title: 'a parent that is sound',
    files: { 'disk.vmdk': child('base.vmdk'), 'base.vmdk': descriptor() },
    shows: ['disk', 'disk@base'],
  },
  {
    title: 'itself',
    files: { 'disk.vmdk': child('disk.vmdk') },
    says: /the chain is a loop/,
    code: 'CORRUPT',
  },
  {
    title: 'itself by a link',
    files: { 'disk.vmdk': child('link') },
    prepare: linkTo('disk.vmdk'),
    says: /the chain is a loop/,
    code: 'CORRUPT',
  },
  {
    title: 'a child of its own',
    files: { 'disk.vmdk': child('a.vmdk'), 'a.vmdk': child('b.vmdk'), 'b.vmdk': child('a.vmdk') },
    says: /the chain is a loop/,
    code: 'CORRUPT',
  },
  {
    title: 'its own extent',
    files: {
      'disk.vmdk': child('base.vmdk', { extents: ['RW 2048 SPARSE "base.vmdk"'] }),
      'base.vmdk': monolithic({}).bytes,
    },
    says: /the chain is a loop/,
    code: 'CORRUPT',
  },
  {
    title: 'a raw file',
    files: { 'disk.vmdk': child('flat.bin'), 'flat.bin': flat },
    says: /descriptor/,
    code: 'CORRUPT',
  },
  {
    title: 'a qcow2 image',
    files: {
      'disk.vmdk': child('base.qcow2'),
      'base.qcow2': buildImage({ sizeBytes: 1024 * K }).bytes(),
    },
    says: /descriptor|too long/,
    code: 'CORRUPT',
  },
  {
    title: 'one that has been changed since',
    files: { 'disk.vmdk': child('base.vmdk'), 'base.vmdk': descriptor({ cid: '1' }) },
    says: /has been changed since/,
    code: 'CORRUPT',
  },
  {
    title: 'one that has been changed since, as is',
    files: { 'disk.vmdk': child('base.vmdk'), 'base.vmdk': descriptor({ cid: '1' }) },
    options: { ignoreCid: true },
    warns: /has been changed since/,
  },
  {
    title: 'one without a name',
    files: { 'disk.vmdk': child('') },
    says: /which it does not name/,
    code: 'CORRUPT',
  },
  {
    title: 'one that is a bare extent',
    files: { 'disk.vmdk': child('base.vmdk'), 'base.vmdk': buildCowd({ sectors: 2048 }).bytes },
    says: /which has none/,
    code: 'CORRUPT',
  },
  {
    title: 'one of 2^52 bytes',
    files: {
      'disk.vmdk': child('base.vmdk'),
      'base.vmdk': descriptor({ extents: [`RW ${2 ** 43} ZERO`] }),
    },
    warns: /differ in size/,
  },
  {
    title: 'more layers than --max-chain',
    files: chainOf(30, 'disk'),
    options: { maxDepth: 29 },
    says: /longer than 29/,
    code: 'UNSUPPORTED',
  },
  { title: 'as many as --max-chain', files: chainOf(30, 'disk'), options: { maxDepth: 30 } },
  {
    title: '500 layers',
    files: chainOf(500, 'disk'),
    options: { maxDepth: 500 },
  },
]

/** A machine whose disk is `disk.vmdk`. */
const disk = (fileName: string) => ({ 'scsi0:0': fileName })
const machine = (snapshots: readonly SnapshotEntry[]): Files => ({
  'm.vmsd': vmsdOf(snapshots, 1),
  'm.vmx': 'scsi0:0.present = "TRUE"\nscsi0:0.fileName = "disk.vmdk"\n',
})
const snapshotOf = (fileName: string, more: Partial<SnapshotEntry> = {}): Files =>
  machine([{ uid: 1, name: 'one', disks: disk(fileName), ...more }])
const sound: Files = { 'disk.vmdk': child('base.vmdk'), 'base.vmdk': descriptor() }
const UNSHOWN = /the snapshot "one" is not shown/

const machines: Case[] = [
  {
    title: 'a list that is sound',
    files: { ...sound, ...snapshotOf('base.vmdk') },
    shows: ['disk', 'disk@one'],
  },
  ...['/etc/shadow', '../x', 'fifo', 'link', '.', 'nbd:x', 'nowhere.vmdk', 'a\u2028b'].map(
    (name): Case => ({
      title: `a snapshot of ${encodeURI(name)}`,
      files: { ...sound, ...snapshotOf(name) },
      prepare: folder => {
        makeFifo('fifo')(folder)
        linkTo('/etc/shadow')(folder)
      },
      shows: ['disk', 'disk@base'],
      warns: UNSHOWN,
    }),
  ),
  {
    title: 'a snapshot of a raw file',
    files: { ...sound, 'flat.bin': flat, ...snapshotOf('flat.bin') },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'a snapshot of a qcow2 image with a data file',
    files: {
      ...sound,
      ...snapshotOf('x.qcow2'),
      'x.qcow2': buildImage({ sizeBytes: 64 * K, dataFile: 'flat.bin' }).bytes(),
      'flat.bin': flat,
    },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'a snapshot of the disk',
    files: { ...sound, ...snapshotOf('disk.vmdk') },
    shows: ['disk', 'disk@one', 'disk@base'],
  },
  {
    title: 'a snapshot that is its own parent',
    files: { ...sound, ...snapshotOf('x.vmdk'), 'x.vmdk': child('x.vmdk') },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'a snapshot whose parent stands on it',
    files: {
      ...sound,
      ...snapshotOf('x.vmdk'),
      'x.vmdk': child('y.vmdk'),
      'y.vmdk': child('x.vmdk'),
    },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'a snapshot whose parents are a loop',
    files: {
      ...sound,
      ...snapshotOf('x.vmdk'),
      'x.vmdk': child('y.vmdk'),
      'y.vmdk': child('z.vmdk'),
      'z.vmdk': child('y.vmdk'),
    },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'two snapshots whose disks stand on each other',
    files: {
      ...sound,
      ...machine([
        { uid: 1, name: 'one', disks: disk('x.vmdk') },
        { uid: 2, parent: 1, name: 'two', disks: disk('y.vmdk') },
      ]),
      'x.vmdk': child('y.vmdk'),
      'y.vmdk': child('x.vmdk'),
    },
    shows: ['disk', 'disk@base'],
    warns: UNSHOWN,
  },
  {
    title: 'snapshots that are their own ancestors',
    files: {
      ...sound,
      ...machine([
        { uid: 1, parent: 2, name: 'one', disks: disk('base.vmdk') },
        { uid: 2, parent: 1, name: 'two', disks: disk('disk.vmdk') },
        { uid: 3, parent: 3, name: 'two', disks: disk('disk.vmdk') },
      ]),
    },
    shows: ['disk', 'disk@one', 'disk@two~2', 'disk@two~3'],
  },
  {
    title: '4096 snapshots of one file',
    files: { ...sound, ...machine(many(4096, () => 'base.vmdk')) },
  },
  {
    title: '4096 snapshots of a file that is missing',
    files: { ...sound, ...machine(many(4096, () => 'nowhere.vmdk')) },
  },
  {
    title: '1500 snapshots of a file each',
    files: {
      ...sound,
      ...machine(many(1500, i => `c${i}.vmdk`)),
      ...Object.fromEntries(Array.from({ length: 1500 }, (_, i) => [`c${i}.vmdk`, descriptor()])),
    },
  },
  {
    title: '1500 snapshots of a file each, each the child of the one before',
    files: {
      ...sound,
      ...machine(many(1500, i => `c${1499 - i}.vmdk`)),
      ...chainOf(1500, 'c0'),
    },
  },
  {
    title: '4096 snapshots of one chain that is too long',
    files: { ...sound, ...machine(many(4096, () => 'c0.vmdk')), ...chainOf(201, 'c0') },
  },
  ...[-(2 ** 52), -1, 1, 2 ** 52, 8.64e18].map(
    (created): Case => ({
      title: `a snapshot of ${created} microseconds`,
      files: { ...sound, ...snapshotOf('base.vmdk', { created }) },
      shows: ['disk', 'disk@one'],
    }),
  ),
  {
    title: 'a snapshot name of screen codes and slashes',
    files: { ...sound, ...snapshotOf('base.vmdk', { name: '\x1b[2J|0A../|2f..|00\u2028' }) },
  },
  {
    title: 'snapshot names and descriptions of 64 KiB',
    files: {
      ...sound,
      ...snapshotOf('base.vmdk', { name: 'n'.repeat(65_536), description: 'd'.repeat(65_536) }),
    },
  },
  {
    title: 'a list that is noise',
    files: { ...sound, 'm.vmsd': noise(64 * K, 5) },
    shows: ['disk', 'disk@base'],
    warns: /no \.vmsd file/,
  },
  {
    title: 'a list of 2^40 bytes',
    files: sound,
    prepare: makeSparse('m.vmsd', 2 ** 40),
    shows: ['disk', 'disk@base'],
    warns: /m\.vmsd: it has 1099511627776 bytes/,
  },
  {
    title: 'a .vmx of 2^40 bytes',
    files: { ...sound, ...snapshotOf('nowhere.vmdk') },
    prepare: makeSparse('m.vmx', 2 ** 40),
    shows: ['disk', 'disk@base'],
  },
  {
    title: 'a list that is a FIFO',
    files: sound,
    prepare: makeFifo('m.vmsd'),
    shows: ['disk', 'disk@base'],
    warns: /m\.vmsd: .* is a FIFO, not a regular file/,
  },
  {
    title: 'a list that is a folder',
    files: sound,
    prepare: folder => mkdirSync(join(folder, 'm.vmsd')),
    shows: ['disk', 'disk@base'],
    warns: /m\.vmsd: .* is a folder, not a regular file/,
  },
  {
    title: 'a list that is a link to itself',
    files: sound,
    prepare: folder => symlinkSync('m.vmsd', join(folder, 'm.vmsd')),
    shows: ['disk', 'disk@base'],
    warns: /m\.vmsd: /,
  },
  {
    title: 'a .vmx that is a link to itself',
    files: {
      ...sound,
      'm.vmsd': vmsdOf([{ uid: 1, name: 'one', disks: disk('nowhere.vmdk') }], 1),
    },
    prepare: folder => symlinkSync('m.vmx', join(folder, 'm.vmx')),
    shows: ['disk', 'disk@base'],
  },
  {
    title: 'a .vmx that is a folder',
    files: {
      ...sound,
      'm.vmsd': vmsdOf([{ uid: 1, name: 'one', disks: disk('nowhere.vmdk') }], 1),
    },
    prepare: folder => mkdirSync(join(folder, 'm.vmx')),
    shows: ['disk', 'disk@base'],
  },
  {
    // An image must not show files from elsewhere, and such a file may have no end.
    title: 'a list that is a link that leads out',
    files: sound,
    prepare: folder => {
      mkdirSync(`${folder}.elsewhere`)
      t.teardown(() => rmSync(`${folder}.elsewhere`, { recursive: true }))
      writeFiles(`${folder}.elsewhere`, { secret: snapshotOf('base.vmdk')['m.vmsd'] as string })
      symlinkSync(`${folder}.elsewhere/secret`, join(folder, 'm.vmsd'))
    },
    shows: ['disk', 'disk@base'],
  },
]

const grains = new Map<number, Grain>([
  [0, { kind: 'data', bytes: noise(8 * K, 1) }],
  [1, { kind: 'data', bytes: noise(8 * K, 2) }],
  [100, { kind: 'data', bytes: noise(8 * K, 3) }],
])
const streamed = new Map<number, Grain>([
  [0, packed(prose(8 * K, 1))],
  [9, packed(noise(8 * K, 2))],
])
const stream = () => monolithic({ isStream: true, isCompressed: true, grains: streamed })
const damaged = (built: { bytes: Buffer }, put: (file: Buffer) => void): Files => {
  put(built.bytes)
  return { 'disk.vmdk': built.bytes }
}

const binaries: Case[] = [
  { title: 'a sparse image', files: { 'disk.vmdk': monolithic({ grains }).bytes } },
  { title: 'a stream', files: { 'disk.vmdk': stream().bytes } },
  {
    title: 'a stream that is cut short',
    files: { 'disk.vmdk': stream().bytes.subarray(0, -512) },
    says: /cut short/,
    code: 'CORRUPT',
  },
  {
    title: 'an embedded descriptor that names others',
    files: {
      'disk.vmdk': monolithic(
        { grains },
        { extents: ['RW 1024 SPARSE "disk.vmdk"', 'RW 1 FLAT "/etc/shadow" 0'] },
      ).bytes,
    },
    says: /outside the image's folder/,
    code: 'REFUSED',
  },
  {
    title: 'an embedded descriptor that names its own file 64 times',
    files: {
      'disk.vmdk': monolithic(
        { grains },
        { extents: Array.from({ length: 64 }, () => 'RW 2048 SPARSE "disk.vmdk"') },
      ).bytes,
    },
  },
  {
    title: 'an embedded descriptor of more than its extent',
    files: {
      'disk.vmdk': monolithic({ grains }, { extents: ['RW 4096 SPARSE "disk.vmdk"'] }).bytes,
    },
    says: /the extent holds 1048576 bytes, and its line says 2097152/,
    code: 'CORRUPT',
  },
  {
    title: 'an embedded descriptor of an extent without a capacity that names itself',
    files: damaged(monolithic({ grains }), f => f.writeBigUInt64LE(0n, HEADER_AT.capacity)),
    says: /the extent holds 0 bytes/,
    code: 'CORRUPT',
  },
  {
    title: 'a capacity of 2^60 sectors',
    files: damaged(monolithic({ grains }), f => f.writeBigUInt64LE(1n << 60n, HEADER_AT.capacity)),
    says: /the disk is too large: it has 590295810358705651712 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'grains of no sectors',
    files: damaged(monolithic({ grains }), f => f.writeBigUInt64LE(0n, HEADER_AT.grain)),
    says: /grains of 0 sectors/,
    code: 'CORRUPT',
  },
  {
    title: 'one million tables that are one',
    files: {
      'disk.vmdk': repeatedTable(),
    },
    limitMs: 10_000,
  },
  {
    title: 'a COWD extent',
    files: {
      'disk.vmdk': descriptor({ extents: ['RW 2048 VMFSSPARSE "x"'] }),
      x: buildCowd({ sectors: 2048, grains: new Map([[0, noise(512, 1)]]) }).bytes,
    },
  },
  {
    title: 'a COWD extent with a parent that it names itself',
    files: {
      'disk.vmdk': buildCowd({ sectors: 99, parent: { name: '/etc/shadow', generation: 1 } }).bytes,
    },
  },
  {
    title: 'a seSparse extent',
    files: {
      'disk.vmdk': descriptor({ extents: ['RW 2048 SESPARSE "x"'] }),
      x: buildSesparse({
        sectors: 2048,
        grains: new Map([[3, { kind: 'data', bytes: noise(4096, 1) }]]),
      }).bytes,
    },
  },
  {
    title: 'a seSparse extent without its tables',
    files: {
      'disk.vmdk': descriptor({ extents: ['RW 2048 SESPARSE "x"'] }),
      x: buildSesparse({ sectors: 2048 }).bytes.subarray(0, 4096),
    },
    says: /beyond the end of the file/,
    code: 'CORRUPT',
  },
  ...['KDMV', 'COWD', '\xbe\xba\xfe\xca\0\0\0\0'].map(
    (magic): Case => ({
      title: `"${magic.slice(0, 4)}" and nothing else`,
      files: { 'disk.vmdk': Buffer.from(magic, 'latin1') },
      says: /cut off/,
      code: 'NOT_AN_IMAGE',
    }),
  ),
]

for (const [title, cases] of Object.entries({ names, parents, machines, binaries })) {
  t.test(title, async t => {
    for (const each of cases) await t.test(each.title, t => check(t, each))
  })
}

async function check(t: Test, each: Case): Promise<void> {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.vmdk')
  writeFiles(folder, each.files)
  each.prepare?.(folder)
  const outcome = await useHostile(watchdog, image, each.options, each.limitMs)
  t.same(outcome.problems, [])
  t.ok(outcome.grownBytes < MAX_GROWTH_BYTES, `grew by ${outcome.grownBytes} bytes`)
  if (outcome.hangs) return
  if (each.says) {
    t.match(outcome.refusal, { line: each.says, code: each.code })
    t.ok(outcome.refusal?.line.startsWith(`${folder}/`), 'names the file')
    t.ok(outcome.refusal?.line.includes('; '), 'says what to do')
    return
  }
  t.equal(outcome.refusal, undefined, 'opens')
  if (outcome.refusal) return
  t.equal(outcome.damages > 0, each.isDamaged ?? false, `${outcome.damages} errors met`)
  if (each.shows)
    t.same(
      outcome.names.map(name => name.slice(0, -'.raw'.length)),
      each.shows,
    )
  const warnings = catalogued(t, image, each.options)
  if (each.warns) t.match(warnings.join('\n'), each.warns)
}

function linkTo(target: string): (folder: string) => void {
  return folder => symlinkSync(target, join(folder, 'link'))
}

/** So many layers, each on the next one; the first is called `top`, the others c1, c2 and so on. */
function chainOf(layers: number, top: string): Files {
  return Object.fromEntries(
    Array.from({ length: layers }, (_, i) => [
      `${i === 0 ? top : `c${i}`}.vmdk`,
      i === layers - 1 ? descriptor() : child(`c${i + 1}.vmdk`),
    ]),
  )
}

/** Parents first, so many snapshots. */
function many(count: number, fileName: (index: number) => string): SnapshotEntry[] {
  return Array.from({ length: count }, (_, i) => ({
    uid: i + 1,
    name: 'one',
    disks: disk(fileName(i)),
    ...(i > 0 && { parent: i }),
  }))
}

/** A directory whose entries all name one table, whose entries all name one grain. */
function repeatedTable(): Buffer {
  const capacitySectors = 2 ** 20 * 8
  const grain: Grain = { kind: 'data', bytes: noise(512, 1) }
  const built = monolithic(
    {
      capacitySectors,
      grainSectors: 1,
      tableEntries: 8,
      hasRedundant: false,
      leavesOutTables: true,
      grains: new Map([[0, grain]]),
    },
    { extents: [`RW ${capacitySectors} SPARSE "disk.vmdk"`] },
  )
  const { bytes } = built
  const place = built.placeOf(0) / 512
  for (let i = 0; i < 8; i++) bytes.writeUInt32LE(place, built.tableAt(0) + i * 4)
  for (let i = 0; i < 2 ** 20; i++) {
    bytes.writeUInt32LE(built.tableAt(0) / 512, built.directoryAt + i * 4)
  }
  return bytes
}
