/** .vmsd and .vmx files: as VMware writes them, each leniency, each limit, and damage. */
import fc from 'fast-check'
import t from 'tap'
import { ImageError, oneLine } from '../../../src/errors.js'
import {
  MAX_FILE_NAME_BYTES,
  MAX_SNAPSHOT_DESCRIPTION_LENGTH,
  MAX_SNAPSHOT_NAME_LENGTH,
  MAX_VM_DISKS,
  MAX_VMSD_BYTES,
  MAX_VMSD_SNAPSHOTS,
  MAX_VMX_BYTES,
} from '../../../src/formats/limits.js'
import { parseVmsd, parseVmxDisks, type VmsdSnapshot } from '../../../src/formats/vmdk/vmsd.js'
import { holds } from '../../support/property.js'
import { cpuMs } from '../../support/cpu.js'

const PATH = '/images/web.vmsd'
const bytesOf = (text: string | Buffer) => (typeof text === 'string' ? Buffer.from(text) : text)
const parse = (text: string | Buffer) => parseVmsd(bytesOf(text), PATH)
const only = (text: string | Buffer): VmsdSnapshot => {
  const { snapshots } = parse(text)
  if (snapshots.length !== 1) throw new Error(`${snapshots.length} snapshots`)
  return snapshots[0] as VmsdSnapshot
}
const uids = (text: string): number[] => parse(text).snapshots.map(({ uid }) => uid)

/** A branch: 1 has the children 2 and 4, 2 has 3; one disk came later, one entry lingers. */
const WORKSTATION = `.encoding = "UTF-8"
snapshot.lastUID = "5"
snapshot.current = "4"
snapshot.mru0.uid = "4"
snapshot0.uid = "1"
snapshot0.filename = "web-Snapshot1.vmsn"
snapshot0.displayName = "fresh |22install|22 |7C a=b"
snapshot0.description = "first line|0D|0Asecond é"
snapshot0.createTimeHigh = "388745"
snapshot0.createTimeLow = "1991180826"
snapshot0.numDisks = "1"
snapshot0.disk0.fileName = "web disk.vmdk"
snapshot0.disk0.node = "scsi0:0"
snapshot.numSnapshots = "4"
snapshot1.uid = "4"
snapshot1.filename = "web-Snapshot4.vmsn"
snapshot1.parent = "1"
snapshot1.displayName = "other way"
snapshot1.type = "1"
snapshot1.createTimeHigh = "388804"
snapshot1.createTimeLow = "1541463919"
snapshot1.numDisks = "2"
snapshot1.disk0.fileName = "web disk-000003.vmdk"
snapshot1.disk0.node = "scsi0:0"
snapshot1.disk1.fileName = "C:\\VMs\\data.vmdk"
snapshot1.disk1.node = "nvme0:1"
snapshot2.uid = "3"
snapshot2.parent = "2"
snapshot2.displayName = "third"
snapshot2.createTimeHigh = "388802"
snapshot2.createTimeLow = "96936632"
snapshot2.numDisks = "1"
snapshot2.disk0.fileName = "web disk-000002.vmdk"
snapshot2.disk0.node = "scsi0:0"
snapshot2.disk1.fileName = "lingers.vmdk"
snapshot2.disk1.node = "scsi0:1"
snapshot3.uid = "2"
snapshot3.parent = "1"
snapshot3.displayName = "SECOND"
snapshot3.createTimeHigh = "388801"
snapshot3.createTimeLow = "-814770620"
snapshot3.numDisks = "1"
snapshot3.disk0.fileName = "web disk-000001.vmdk"
snapshot3.disk0.node = "scsi0:0"
snapshot4.uid = "5"
snapshot4.parent = "4"
snapshot4.displayName = "removed"
`
const WORKSTATION_SNAPSHOTS: VmsdSnapshot[] = [
  {
    uid: 1,
    parent: undefined,
    displayName: 'fresh "install" | a=b',
    description: 'first line\r\nsecond é',
    created: new Date(Math.floor((388745 * 2 ** 32 + 1991180826) / 1000)),
    disks: [{ fileName: 'web disk.vmdk', node: 'scsi0:0' }],
  },
  {
    uid: 2,
    parent: 1,
    displayName: 'SECOND',
    description: '',
    created: new Date(Math.floor((388801 * 2 ** 32 + 2 ** 32 - 814770620) / 1000)),
    disks: [{ fileName: 'web disk-000001.vmdk', node: 'scsi0:0' }],
  },
  {
    uid: 3,
    parent: 2,
    displayName: 'third',
    description: '',
    created: new Date(Math.floor((388802 * 2 ** 32 + 96936632) / 1000)),
    disks: [{ fileName: 'web disk-000002.vmdk', node: 'scsi0:0' }],
  },
  {
    uid: 4,
    parent: 1,
    displayName: 'other way',
    description: '',
    created: new Date(Math.floor((388804 * 2 ** 32 + 1541463919) / 1000)),
    disks: [
      { fileName: 'web disk-000003.vmdk', node: 'scsi0:0' },
      { fileName: 'C:\\VMs\\data.vmdk', node: 'nvme0:1' },
    ],
  },
]

t.test('a machine with a branch', async t => {
  const expected = { current: 4, snapshots: WORKSTATION_SNAPSHOTS }
  t.strictSame(parse(WORKSTATION), expected)
  t.strictSame(parse(WORKSTATION.replaceAll('\n', '\r\n')), expected)
  t.strictSame(parse(`\ufeff${WORKSTATION}`), expected)
  t.strictSame(
    parse(WORKSTATION.replaceAll(' = ', '=').replaceAll('snapshot', 'SNAPshot')),
    expected,
  )
  t.strictSame(parse(WORKSTATION.split('\n').reverse().join('\n')), expected)
  t.equal(WORKSTATION_SNAPSHOTS[0]?.created?.toISOString(), '2022-11-28T15:24:12.664Z')
  t.equal(WORKSTATION_SNAPSHOTS[1]?.created?.toISOString(), '2022-12-01T10:37:39.848Z')
})

t.test('machines without snapshots', async t => {
  const none = { current: undefined, snapshots: [] }
  t.strictSame(parse(''), none, 'ESX leaves the file empty')
  t.strictSame(parse(' \r\n\t\n'), none)
  t.strictSame(parse('.encoding = "UTF-8"\n'), none)
  t.strictSame(
    parse('snapshot.lastUID = "7"\nsnapshot.current = "0"\nsnapshot.numSnapshots = "0"'),
    none,
  )
  t.strictSame(parse(WORKSTATION.replace('numSnapshots = "4"', 'numSnapshots = "0"')), none)
})

t.test('what is no .vmsd file', async t => {
  const cases: [title: string, bytes: Buffer, code: string, says: RegExp][] = [
    ['zeros', Buffer.alloc(100), 'NOT_AN_IMAGE', /no \.vmsd file: it names no snapshots; /],
    ['a binary', Buffer.from('\x7fELF\x02\x01\x01\0\0\0'), 'NOT_AN_IMAGE', /no \.vmsd file/],
    ['prose', Buffer.from('snapshots of my dog\n'), 'NOT_AN_IMAGE', /no \.vmsd file/],
    ['comments', Buffer.from('# snapshot0.uid = "1"'), 'NOT_AN_IMAGE', /no \.vmsd file/],
    ['a .vmx file', Buffer.from('scsi0:0.fileName = "a.vmdk"'), 'NOT_AN_IMAGE', /no \.vmsd file/],
    [
      'too long a file',
      Buffer.alloc(MAX_VMSD_BYTES + 1, 10),
      'CORRUPT',
      /more than 2097152 bytes; /,
    ],
  ]
  for (const [title, bytes, code, says] of cases) {
    const error = errorOf(() => parseVmsd(bytes, PATH))
    t.equal(error?.code, code, title)
    t.match(error && oneLine(error), says, title)
    t.match(error && oneLine(error), /^\/images\/web\.vmsd: .*; move it away/, title)
  }
})

/** `[uid, parent]` of each snapshot. */
const tree = (...links: [number, number?][]): string =>
  links
    .map(([uid, parent], i) => {
      const above = parent === undefined ? '' : `snapshot${i}.parent = "${parent}"\n`
      return `snapshot${i}.uid = "${uid}"\n${above}`
    })
    .join('')

t.test('the order', async t => {
  t.strictSame(uids(tree([3, 2], [2, 1], [1])), [1, 2, 3], 'children first')
  t.strictSame(
    uids(tree([9], [4], [5, 9], [8, 4], [6, 9], [7, 4])),
    [4, 7, 8, 9, 5, 6],
    'two roots',
  )
  t.strictSame(uids(tree([10, 9], [9], [2, 10])), [9, 10, 2], 'by number, not by letter')
  t.strictSame(uids(tree([3, 77], [1], [2, 1])), [1, 2, 3], 'a parent that is not there')
  t.strictSame(uids(tree([1], [5, 5], [2, 1])), [1, 2, 5], 'its own parent')
  t.strictSame(
    uids(tree([4, 3], [3, 2], [2, 4], [9], [1, 3])),
    [9, 1, 2, 3, 4],
    'a loop and a child of it',
  )
  t.strictSame(uids(tree([0], [1, 0])), [0, 1], 'uid 0')
  t.strictSame(
    parse(tree([3, 77])).snapshots.map(({ parent }) => parent),
    [77],
    'the parent is as written',
  )
  const deep = Array.from({ length: MAX_VMSD_SNAPSHOTS }, (_, i): [number, number] => [i + 1, i])
  t.strictSame(
    uids(tree(...deep.toReversed())),
    deep.map(([uid]) => uid),
    'as deep as can be',
  )
})

t.test('damaged entries', async t => {
  const good = 'snapshot0.uid = "1"\nsnapshot0.displayName = "good"\n'
  const bad: [title: string, text: string][] = [
    ['no uid', 'snapshot1.displayName = "bad"'],
    ['a uid of letters', 'snapshot1.uid = "one"'],
    ['an empty uid', 'snapshot1.uid = ""'],
    ['a uid below 0', 'snapshot1.uid = "-1"'],
    ['a uid of 20 digits', 'snapshot1.uid = "11111111111111111111"'],
    ['a uid that is taken', 'snapshot1.uid = "1"\nsnapshot1.displayName = "bad"'],
    ['an index of 20 digits', 'snapshot11111111111111111111.uid = "2"'],
    ['an index above the limit', `snapshot${MAX_VMSD_SNAPSHOTS}.uid = "2"`],
    ['no index', 'snapshot.uid = "2"'],
    ['no name', 'snapshot1. = "2"\nsnapshot1 = "2"'],
    ['a line that ends within', 'snapshot1.uid'],
    ['what ends at a NUL', '\0snapshot1.uid = "2"'],
    ['names of prototypes', 'snapshot1.__proto__ = "1"\nsnapshot0.__proto__.uid = "3"'],
  ]
  for (const [title, text] of bad) {
    t.strictSame(
      parse(`${good}${text}\n`).snapshots.map(({ uid, displayName }) => [uid, displayName]),
      [[1, 'good']],
      title,
    )
  }
  t.equal(
    parse('snapshot.current = "2"\nsnapshot0.uid = "1"').current,
    undefined,
    'no such current',
  )
  t.equal(parse('snapshot.current = "x"\nsnapshot0.uid = "1"').current, undefined)
  t.equal(parse('snapshot.current = 1\nsnapshot0.uid = "1"').current, 1)
  t.equal(only('snapshot0.uid = "1"\nsnapshot0.parent = "x"').parent, undefined)
  t.strictSame(uids(`${good}snapshot.numSnapshots = "many"`), [1])
  t.strictSame(uids(`${good}snapshot.numSnapshots = "-1"`), [1])
  t.strictSame(uids(`${good}snapshot.numSnapshots = "4000000000"`), [1])
  t.strictSame(uids(`${good}snapshot00.uid = "5"`), [1], 'an index twice')
})

t.test('times', async t => {
  const created = (high: string | undefined, low: string | undefined) =>
    only(
      `snapshot0.uid = "1"\n${high === undefined ? '' : `snapshot0.createTimeHigh = "${high}"\n`}${
        low === undefined ? '' : `snapshot0.createTimeLow = "${low}"\n`
      }`,
    ).created?.getTime()
  t.equal(created('0', '0'), 0)
  t.equal(created('0', '1000000'), 1000)
  t.equal(created('0', '-1'), 4294967)
  t.equal(created('0', '4294967295'), 4294967)
  t.equal(created('388745', '-2147483648'), Math.floor((388745 * 2 ** 32 + 2 ** 31) / 1000))
  for (const [high, low] of [
    [undefined, '1'],
    ['1', undefined],
    ['1', '4294967296'],
    ['1', '-2147483649'],
    ['1', '1.5'],
    ['x', '1'],
    ['', ''],
    ['2147483647', '0'],
    ['-2147483648', '0'],
  ]) {
    t.equal(created(high, low), undefined, `${high}/${low}`)
  }
})

t.test('disks', async t => {
  const disks = (...lines: string[]) =>
    only(['snapshot0.uid = "1"', ...lines.map(line => `snapshot0.${line}`)].join('\n')).disks
  t.strictSame(disks('disk0.fileName = "a"'), [{ fileName: 'a', node: '' }])
  t.strictSame(disks('disk0.node = "scsi0:0"'), [])
  t.strictSame(disks('numDisks = "0"', 'disk0.fileName = "a"'), [])
  t.strictSame(disks('disk10.fileName = "k"', 'disk2.fileName = "c"', 'disk2.NODE = "SCSI0:2"'), [
    { fileName: 'c', node: 'scsi0:2' },
    { fileName: 'k', node: '' },
  ])
  t.strictSame(disks('disk0.fileName = ""', 'disk1.fileName = "b"'), [{ fileName: 'b', node: '' }])
  t.strictSame(disks('disk0.fileName = "a|00b"'), [], 'a NUL in a name')
  t.strictSame(disks('disk0.fileName = "a|0'), [{ fileName: 'a|0', node: '' }], 'half an escape')
  t.strictSame(disks('disk0.fileName = "a|2gb"'), [{ fileName: 'a|2gb', node: '' }])
  const longest = 'é'.repeat(MAX_FILE_NAME_BYTES / 2)
  t.strictSame(disks(`disk0.fileName = "${longest}"`), [{ fileName: longest, node: '' }])
  t.strictSame(disks(`disk0.fileName = "${longest}éé"`), [])
  const many = Array.from({ length: MAX_VM_DISKS + 5 }, (_, i) => `disk${i}.fileName = "${i}"`)
  t.strictSame(
    disks(...many).map(({ fileName }) => Number(fileName)),
    many.slice(0, MAX_VM_DISKS).map((_, i) => i),
  )
})

t.test('names and encodings', async t => {
  const named = (encoding: string, bytes: Buffer): VmsdSnapshot =>
    only(
      Buffer.concat([
        Buffer.from(`.encoding = "${encoding}"\nsnapshot0.uid = "1"\nsnapshot0.displayName = "`),
        bytes,
        Buffer.from('"\n'),
      ]),
    )
  const hex = (text: string) => Buffer.from(text, 'hex')
  t.equal(named('UTF-8', Buffer.from('中文 é')).displayName, '中文 é')
  t.equal(named('windows-1252', hex('80e9')).displayName, '€é')
  t.equal(named('GBK', hex('d6d0817c3232')).displayName, '中亅22', 'a pipe within a character')
  t.equal(named('GBK', Buffer.from('|D6|D0')).displayName, '中')
  t.equal(named('Big5', hex('a55ca4a4')).displayName, '功中')
  t.equal(named('Shift_JIS', hex('955c')).displayName, '表')
  t.equal(named('UTF-8', Buffer.from('|C3|a9|22|7c22')).displayName, 'é"|22', 'once, not twice')
  const long = named('UTF-8', Buffer.from('n'.repeat(MAX_SNAPSHOT_NAME_LENGTH + 1)))
  t.equal(long.displayName.length, MAX_SNAPSHOT_NAME_LENGTH)
  const description = 'd'.repeat(MAX_SNAPSHOT_DESCRIPTION_LENGTH + 1)
  t.equal(
    only(`snapshot0.uid = "1"\nsnapshot0.description = "${description}"`).description.length,
    MAX_SNAPSHOT_DESCRIPTION_LENGTH,
  )
})

const VMX = `#!/usr/bin/vmware
.encoding = "UTF-8"
config.version = "8"
scsi0.present = "TRUE"
scsi0.virtualDev = "lsilogic"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "web disk-000004.vmdk"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:1.fileName = "gone.vmdk"
scsi0:1.present = "FALSE"
scsi0:2.fileName = "quiet |22one|22.vmdk"
sata0:1.present = "TRUE"
sata0:1.fileName = "/isos/debian.iso"
sata0:1.deviceType = "cdrom-image"
ide1:0.fileName = "auto detect"
ide1:0.deviceType = "atapi-cdrom"
ide1:0.present = "true"
IDE0:0.FILENAME = C:\\old.vmdk
ide0:0.redo = ""
nvme0:14.fileName = "fast.vmdk"
nvme0:14.deviceType = "disk"
sata0:7.present = "TRUE"
floppy0.fileName = "boot.flp"
usb:0.fileName = "x"
scsi0.fileName = "y"
scsi0:3.fileName = ""
scsi0:0.fileName = "a second time.vmdk"
`

t.test('the disks of a .vmx file', async t => {
  const expected = [
    { node: 'scsi0:0', fileName: 'web disk-000004.vmdk' },
    { node: 'scsi0:2', fileName: 'quiet "one".vmdk' },
    { node: 'ide0:0', fileName: 'C:\\old.vmdk' },
    { node: 'nvme0:14', fileName: 'fast.vmdk' },
  ]
  t.strictSame(parseVmxDisks(Buffer.from(VMX)), expected)
  t.strictSame(parseVmxDisks(Buffer.from(VMX.replaceAll('\n', '\r\n'))), expected)
  t.strictSame(parseVmxDisks(Buffer.alloc(0)), [])
  t.strictSame(parseVmxDisks(Buffer.alloc(1000)), [])
  t.strictSame(parseVmxDisks(Buffer.from([0xff, 0xfe, 0x41, 0x0a])), [])
  t.strictSame(
    parseVmxDisks(Buffer.from('.encoding = "GBK"\nscsi0:0.fileName = "\xd6\xd0.vmdk"', 'latin1')),
    [{ node: 'scsi0:0', fileName: '中.vmdk' }],
  )
  const many = Array.from({ length: MAX_VM_DISKS + 9 }, (_, i) => {
    return `scsi${Math.floor(i / 100)}:${i % 100}.fileName = "${i}"`
  })
  t.equal(parseVmxDisks(Buffer.from(many.join('\n'))).length, MAX_VM_DISKS)
  t.equal(parseVmxDisks(Buffer.alloc(MAX_VMX_BYTES, 10)).length, 0)
  t.match(
    errorOf(() => parseVmxDisks(Buffer.alloc(MAX_VMX_BYTES + 1, 10))),
    {
      code: 'CORRUPT',
      message: /the \.vmx file has more than 1048576 bytes/,
    },
  )
})

/** What `act` throws, if it does; anything but an ImageError fails the test. */
function errorOf(act: () => unknown): ImageError | undefined {
  try {
    act()
    return undefined
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return error
  }
}

t.test('texts that take long where a search goes back', async t => {
  const fill = (line: string) => line.repeat(Math.floor(MAX_VMSD_BYTES / line.length))
  let index = 0
  const texts = [
    fill(' '),
    fill('\n'),
    fill('a'),
    `snapshot0.uid = "1"\nsnapshot0.description = "${'|41'.repeat(5 * 10 ** 5)}"`,
    `snapshot0.uid = "1"\nsnapshot0.description = "${'" #'.repeat(5 * 10 ** 5)}x`,
    `snapshot0.uid = "1"\nsnapshot0.description = ${' #'.repeat(5 * 10 ** 5)}x`,
    `snapshot${'0'.repeat(2 * 10 ** 6)}.uid = "1"`,
    fill('a=\n'),
    fill('snapshot0.uid = "1"\n'),
    // Every entry is one more, and every one is kept.
    Array.from({ length: 60_000 }, () => `snapshot${index++ % 4096}.disk${index}.node=`).join('\n'),
  ]
  for (const text of texts) {
    const start = cpuMs()
    errorOf(() => parse(text))
    errorOf(() => parseVmxDisks(Buffer.from(text).subarray(0, MAX_VMX_BYTES)))
    const took = cpuMs() - start
    t.ok(took < 6000, `${JSON.stringify(text.slice(0, 30))}: ${Math.round(took)} ms`)
  }
})

const TOKENS = [
  '\n',
  '"',
  '=',
  '|22',
  '|',
  '\0',
  '#',
  '-',
  '9'.repeat(12),
  '\xff\xfe',
  'snapshot',
  'x'.repeat(3000),
]

t.test('mutations', async t => {
  const edit = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    removed: fc.nat(30),
    inserted: fc.oneof(
      fc.constantFrom(...TOKENS).map(token => Buffer.from(token, 'latin1')),
      fc.uint8Array({ maxLength: 4 }).map(bytes => Buffer.from(bytes)),
    ),
  })
  const texts = fc
    .record({
      base: fc.constantFrom(WORKSTATION, VMX),
      edits: fc.array(edit, { minLength: 1, maxLength: 6 }),
    })
    .map(({ base, edits }) =>
      edits.reduce((bytes, { at, removed, inserted }) => {
        const from = Math.floor(at * bytes.length)
        return Buffer.concat([bytes.subarray(0, from), inserted, bytes.subarray(from + removed)])
      }, Buffer.from(base)),
    )
  const runs = await holds(texts, 1000, bytes => {
    const disks = parseVmxDisks(bytes)
    if (disks.some(({ fileName }) => fileName === '' || fileName.includes('\0'))) throw new Error()
    if (errorOf(() => parse(bytes))) return
    const { current, snapshots } = parse(bytes)
    const known = new Set(snapshots.map(({ uid }) => uid))
    if (known.size !== snapshots.length) throw new Error('a uid twice')
    if (current !== undefined && !known.has(current)) throw new Error('current')
    const seen = new Set<number>()
    let isLoop = false
    for (const { uid, parent } of snapshots) {
      const isRoot = parent === undefined || !known.has(parent)
      // From the first snapshot of a loop on, all are in loops or descend from them.
      isLoop ||= !isRoot && !seen.has(parent)
      if (isLoop && isRoot) throw new Error('a root after a loop')
      seen.add(uid)
    }
  })
  t.ok(runs >= 1000, `${runs} runs`)
})
