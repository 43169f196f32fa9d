/** Descriptors: as programs write them, each leniency, each refusal with its words, and damage. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { ImageError, oneLine } from '../../../src/errors.js'
import {
  MAX_DDB_ENTRIES,
  MAX_DESCRIPTOR_LINE_LENGTH,
  MAX_EXTENT_LINES,
  MAX_FILE_NAME_BYTES,
  MAX_VMDK_DESCRIPTOR_BYTES,
} from '../../../src/formats/limits.js'
import {
  type Descriptor,
  type ExtentLine,
  isDescriptor,
  NO_PARENT_CID,
  parseDescriptor,
} from '../../../src/formats/vmdk/descriptor.js'
import { holds } from '../../support/property.js'
import { needs, run, tempFolder } from '../../support/run.js'
import { cpuMs } from '../../support/cpu.js'

const PATH = '/images/disk.vmdk'
const bytesOf = (text: string | Buffer) => (typeof text === 'string' ? Buffer.from(text) : text)
const parse = (text: string | Buffer): Descriptor => parseDescriptor(bytesOf(text), PATH)
const HEAD = 'version=1\nCID=12345678\nparentCID=ffffffff\ncreateType="custom"\n'
const withExtents = (...lines: string[]): string => `${HEAD}${lines.join('\n')}\n`
/** What the only extent of `line` is. */
const extentOf = (line: string): ExtentLine => {
  const { extents } = parse(withExtents(line))
  if (extents.length !== 1) throw new Error(`${extents.length} extents`)
  return extents[0] as ExtentLine
}

const WORKSTATION = `# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=fffffffe
parentCID=123a
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"
parentFileNameHint="C:\\VMs\\Old one\\disk.vmdk"
# Extent description
RW 8323072 SPARSE "Windows 10-000001-s001.vmdk"
RW 8323072 SPARSE "Windows 10-000001-s002.vmdk"
RW 131072 SPARSE "Windows 10-000001-s003.vmdk"

# The Disk Data Base 
#DDB

ddb.toolsInstallType = "1"
ddb.toolsVersion = "10346"
`
const ESX = `# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=7d1c5ee6
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 83886080 VMFS "web-flat.vmdk"

# Change Tracking File
changeTrackPath="web-ctk.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "5221"
ddb.longContentID = "0b0c5d3e9a2f4c1e8d7b6a5f7d1c5ee6"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 9b 0e 52 62 a1-54 5c 25 ba 3c 1b 4f 2e"
`
const DELTA = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=9e0d7a11
parentCID=7d1c5ee6
createType="seSparse"
parentFileNameHint="web.vmdk"
# Extent description
RW 83886080 SESPARSE "web-000001-sesparse.vmdk"
`
const VIRTUALBOX = `# Disk DescriptorFile
version=1
CID=c0ffee00
parentCID=ffffffff
createType="partitionedDevice"

# Extent description
RW 63 FLAT "disk-pt.vmdk" 0 
RW 208782 FLAT "/dev/sda" 63 
RW 1000 ZERO 
RDONLY 2048 FLAT "\\\\.\\PhysicalDrive0" 209845 partitionUUID 0e4b 7f00

# The disk Data Base 
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType="ide"
ddb.uuid.image="b2a6ad3d-6bbd-4a5e-8c39-9a3e0e6d9b07"
ddb.uuid.parent="00000000-0000-0000-0000-000000000000"
ddb.comment=""
`
const OVFTOOL = `# Disk DescriptorFile
version=1
CID=e8b8d11a
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY 20971520 SPARSE "call-me-stream.vmdk"

# The Disk Data Base
#DDB

ddb.deletable = "true"
ddb.encoding = "UTF-8"
ddb.longContentID = "dd3e0cd5d1ea6f2a6d0f9a90e8b8d11a"
ddb.toolsVersion = "2147483647"
`

const extent = (
  access: ExtentLine['access'],
  sectors: number,
  type: ExtentLine['type'],
  fileName?: string,
  startSectors = 0,
) => ({ access, sectors, type, fileName, startSectors })

const whole: { title: string; text: string; expected: object; extents: object[] }[] = [
  {
    title: 'VMware Workstation, a child',
    text: WORKSTATION,
    expected: {
      version: 1,
      encoding: 'windows-1252',
      cid: 0xfffffffe,
      parentCid: 0x123a,
      createType: 'twoGbMaxExtentSparse',
      parentHint: 'C:\\VMs\\Old one\\disk.vmdk',
      changeTrackPath: undefined,
      longContentId: undefined,
      ddb: { toolsinstalltype: '1', toolsversion: '10346' },
    },
    extents: [
      extent('RW', 8323072, 'SPARSE', 'Windows 10-000001-s001.vmdk'),
      extent('RW', 8323072, 'SPARSE', 'Windows 10-000001-s002.vmdk'),
      extent('RW', 131072, 'SPARSE', 'Windows 10-000001-s003.vmdk'),
    ],
  },
  {
    title: 'ESX, a disk with change tracking',
    text: ESX,
    expected: {
      version: 3,
      encoding: 'UTF-8',
      cid: 0x7d1c5ee6,
      parentCid: NO_PARENT_CID,
      createType: 'vmfs',
      parentHint: undefined,
      changeTrackPath: 'web-ctk.vmdk',
      longContentId: '0b0c5d3e9a2f4c1e8d7b6a5f7d1c5ee6',
      ddb: {
        adaptertype: 'lsilogic',
        'geometry.cylinders': '5221',
        longcontentid: '0b0c5d3e9a2f4c1e8d7b6a5f7d1c5ee6',
        thinprovisioned: '1',
        uuid: '60 00 C2 9b 0e 52 62 a1-54 5c 25 ba 3c 1b 4f 2e',
      },
    },
    extents: [extent('RW', 83886080, 'VMFS', 'web-flat.vmdk')],
  },
  {
    title: 'ESX, a delta',
    text: DELTA,
    expected: {
      version: 1,
      encoding: 'UTF-8',
      cid: 0x9e0d7a11,
      parentCid: 0x7d1c5ee6,
      createType: 'seSparse',
      parentHint: 'web.vmdk',
      changeTrackPath: undefined,
      longContentId: undefined,
      ddb: {},
    },
    extents: [extent('RW', 83886080, 'SESPARSE', 'web-000001-sesparse.vmdk')],
  },
  {
    title: 'VirtualBox, a raw disk with partitions',
    text: VIRTUALBOX,
    expected: {
      version: 1,
      encoding: undefined,
      cid: 0xc0ffee00,
      parentCid: NO_PARENT_CID,
      createType: 'partitionedDevice',
      parentHint: undefined,
      changeTrackPath: undefined,
      longContentId: undefined,
      ddb: {
        virtualhwversion: '4',
        adaptertype: 'ide',
        'uuid.image': 'b2a6ad3d-6bbd-4a5e-8c39-9a3e0e6d9b07',
        'uuid.parent': '00000000-0000-0000-0000-000000000000',
        comment: '',
      },
    },
    extents: [
      extent('RW', 63, 'FLAT', 'disk-pt.vmdk'),
      extent('RW', 208782, 'FLAT', '/dev/sda', 63),
      extent('RW', 1000, 'ZERO'),
      extent('RDONLY', 2048, 'FLAT', '\\\\.\\PhysicalDrive0', 209845),
    ],
  },
  {
    title: 'OVF tool, within its extent',
    text: `${OVFTOOL}${'\0'.repeat(300)}`,
    expected: {
      version: 1,
      encoding: undefined,
      cid: 0xe8b8d11a,
      parentCid: NO_PARENT_CID,
      createType: 'streamOptimized',
      parentHint: undefined,
      changeTrackPath: undefined,
      longContentId: 'dd3e0cd5d1ea6f2a6d0f9a90e8b8d11a',
      ddb: {
        deletable: 'true',
        encoding: 'UTF-8',
        longcontentid: 'dd3e0cd5d1ea6f2a6d0f9a90e8b8d11a',
        toolsversion: '2147483647',
      },
    },
    extents: [extent('RDONLY', 20971520, 'SPARSE', 'call-me-stream.vmdk')],
  },
]
/** A descriptor whose `ddb` and extents can be compared as they are. */
const plain = ({ ddb, extents, ...rest }: Descriptor) => ({
  ...rest,
  ddb: { ...ddb },
  extents: extents.map(({ line: _, ...extent }) => extent),
})
for (const { title, text, expected, extents } of whole) {
  t.test(title, async t => {
    t.strictSame(plain(parse(text)), { ...expected, extents })
    t.equal(isDescriptor(Buffer.from(text)), true)
    for (const lineEnd of ['\r\n', '\r', '\n\n', ' \t\n \t']) {
      const other = text.replaceAll('\n', lineEnd)
      t.strictSame(plain(parse(other)), { ...expected, extents }, JSON.stringify(lineEnd))
      t.equal(isDescriptor(Buffer.from(other)), true)
    }
    const stale = Buffer.concat([Buffer.from(`${text}\0`), Buffer.from('RW 5 ZERO\n\xff\xfe')])
    t.strictSame(plain(parse(stale)), { ...expected, extents }, 'with something after its NUL')
    t.strictSame(plain(parse(`\ufeff${text}`)), { ...expected, extents }, 'with a mark in front')
  })
}

t.test('keys', async t => {
  const cases: { title: string; text: string; expected: Partial<Descriptor> }[] = [
    {
      title: 'nothing but extents',
      text: '',
      expected: { version: 1, cid: 0, parentCid: NO_PARENT_CID, createType: '', ddb: {} },
    },
    { title: 'blanks', text: ' \t CID\t =  "1f"\t ', expected: { cid: 0x1f } },
    {
      title: 'any case',
      text: 'cId=AbCdEf01\nPARENTcid=0',
      expected: { cid: 0xabcdef01, parentCid: 0 },
    },
    {
      title: 'parentCID before CID',
      text: 'parentCID=2\nCID=1',
      expected: { cid: 1, parentCid: 2 },
    },
    { title: 'a key twice', text: 'CID=1\ncid=2', expected: { cid: 1 } },
    { title: 'a short CID', text: 'CID=8f32b4b', expected: { cid: 0x8f32b4b } },
    // As Xen Orchestra writes it, and as QEMU and VirtualBox read it.
    { title: 'a CID of ten digits', text: 'CID=3029384756', expected: { cid: 0x29384756 } },
    { title: 'a CID of nine digits', text: 'CID=123456789', expected: { cid: 0x23456789 } },
    { title: 'a CID with 0x', text: 'CID=0x8F32B4B1', expected: { cid: 0x8f32b4b1 } },
    {
      title: 'comments',
      text: 'CID=5 # five\ncreateType="a" # b',
      expected: { cid: 5, createType: 'a' },
    },
    { title: 'a comment that quotes', text: 'createType="a" # "b"', expected: { createType: 'a' } },
    { title: 'a commented key', text: '#CID=7\n  # CID=8', expected: { cid: 0 } },
    {
      title: '# in a name',
      text: 'parentFileNameHint="a #1.vmdk"',
      expected: { parentHint: 'a #1.vmdk' },
    },
    {
      title: '# within a word',
      text: 'parentFileNameHint=a#1.vmdk',
      expected: { parentHint: 'a#1.vmdk' },
    },
    {
      title: 'a name without quotes',
      text: 'parentFileNameHint=my disk.vmdk',
      expected: { parentHint: 'my disk.vmdk' },
    },
    {
      title: 'quotes in a name',
      text: 'parentFileNameHint="my "best" disk"',
      expected: { parentHint: 'my "best" disk' },
    },
    {
      title: 'a quote that is not closed',
      text: 'parentFileNameHint="disk',
      expected: { parentHint: 'disk' },
    },
    { title: 'a lone quote', text: 'parentFileNameHint="', expected: { parentHint: undefined } },
    { title: '= in a name', text: 'parentFileNameHint="a=b"', expected: { parentHint: 'a=b' } },
    {
      title: 'an empty name',
      text: 'parentFileNameHint=""\nchangeTrackPath=',
      expected: { parentHint: undefined, changeTrackPath: undefined },
    },
    {
      title: 'unknown text',
      text: 'some garbage\nfoo="bar"\n=\n==\n"\nCID',
      expected: { cid: 0 },
    },
    { title: 'a version of the future', text: 'version = "40"', expected: { version: 40 } },
    { title: 'an unknown encoding', text: 'encoding="Klingon"', expected: { encoding: 'Klingon' } },
    { title: 'ddb in any case', text: 'DDB.LongContentID=Ab', expected: { longContentId: 'Ab' } },
  ]
  for (const { title, text, expected } of cases) {
    const { ddb, ...found } = parse(`${text}\nRW 1 ZERO\n`)
    const { ddb: expectedDdb, ...rest } = expected
    for (const [key, value] of Object.entries(rest)) {
      t.strictSame(found[key as keyof typeof found], value, `${title}: ${key}`)
    }
    if (expectedDdb) t.strictSame({ ...ddb }, expectedDdb, title)
  }
  const { ddb } = parse('ddb.__proto__="x"\nddb.constructor="y"\nddb.a="1"\nRW 1 ZERO')
  t.strictSame(Object.entries(ddb), [
    ['__proto__', 'x'],
    ['constructor', 'y'],
    ['a', '1'],
  ])
  t.equal(Object.getPrototypeOf(ddb), null)
  t.equal(({} as Record<string, unknown>).a, undefined)
})

t.test('extent lines', async t => {
  const cases: [line: string, expected: object][] = [
    ['RW 63 FLAT "a b.vmdk" 7', extent('RW', 63, 'FLAT', 'a b.vmdk', 7)],
    ['  rw\t63\tflat\t"a"\t7  ', extent('RW', 63, 'FLAT', 'a', 7)],
    ['RW 0 FLAT "a" 0', extent('RW', 0, 'FLAT', 'a')],
    ['RW 00063 SPARSE "a"', extent('RW', 63, 'SPARSE', 'a')],
    ['RW 63 FLAT "a"', extent('RW', 63, 'FLAT', 'a')],
    ['RW 63 FLAT"a"7', { ...extent('RW', 63, 'FLAT', 'a', 7), bad: true }],
    ['RW 63 FLAT"a" 7', extent('RW', 63, 'FLAT', 'a', 7)],
    ['RW 63 FLAT "say "hi".vmdk" 7', extent('RW', 63, 'FLAT', 'say "hi".vmdk', 7)],
    ['RW 63 FLAT "a" 5 "b.vmdk" 7', extent('RW', 63, 'FLAT', 'a" 5 "b.vmdk', 7)],
    ['RW 63 SPARSE "a" 5 "b.vmdk"', extent('RW', 63, 'SPARSE', 'a" 5 "b.vmdk')],
    ['RW 63 SPARSE "say "hi""', extent('RW', 63, 'SPARSE', 'say "hi"')],
    ['RW 63 SPARSE """', extent('RW', 63, 'SPARSE', '"')],
    ['RW 63 VMFS "a" 0', extent('RW', 63, 'VMFS', 'a')],
    ['RW 63 VMFSSPARSE "a-delta.vmdk"', extent('RW', 63, 'VMFSSPARSE', 'a-delta.vmdk')],
    ['RW 63 VMFSRDM "a-rdm.vmdk"', extent('RW', 63, 'VMFSRDM', 'a-rdm.vmdk')],
    ['RW 63 VMFSRAW "vml.0200"', extent('RW', 63, 'VMFSRAW', 'vml.0200')],
    ['RW 63 FLAT "dev" 9 "a uuid" "an id"', extent('RW', 63, 'FLAT', 'dev', 9)],
    ['RW 63 FLAT "dev" 9 a-uuid an-id', extent('RW', 63, 'FLAT', 'dev', 9)],
    ['RW 63 FLAT "a" 7 # the "old" one', extent('RW', 63, 'FLAT', 'a', 7)],
    ['RW 63 SPARSE "a" # old', extent('RW', 63, 'SPARSE', 'a')],
    ['RW 63 SPARSE "a#b=c.vmdk"', extent('RW', 63, 'SPARSE', 'a#b=c.vmdk')],
    ['RW 63 ZERO # nothing', extent('RW', 63, 'ZERO')],
    ['NOACCESS 63 ZERO "unused"', extent('NOACCESS', 63, 'ZERO')],
    ['NOACCESS 63 FLAT "x" 1', extent('NOACCESS', 63, 'FLAT', 'x', 1)],
    ['RW 63 FLAT "..\\x/y\\z" 1', extent('RW', 63, 'FLAT', '..\\x/y\\z', 1)],
    [`RW ${2 ** 44 - 1} ZERO`, extent('RW', 2 ** 44 - 1, 'ZERO')],
    [`RW 63 FLAT "a" ${2 ** 44 - 64}`, extent('RW', 63, 'FLAT', 'a', 2 ** 44 - 64)],
  ]
  for (const [line, expected] of cases) {
    if ('bad' in expected) {
      t.throws(() => extentOf(line), /no name/, line)
      continue
    }
    const { line: kept, ...found } = extentOf(line)
    t.strictSame(found, expected, line)
    t.equal(kept, line.trim())
  }
  const longest = 'é'.repeat(MAX_FILE_NAME_BYTES / 2)
  t.equal(extentOf(`RW 1 SPARSE "${longest}"`).fileName, longest)
  const many = Array.from({ length: MAX_EXTENT_LINES }, (_, i) => `RW ${i} SPARSE "s${i}"`)
  t.strictSame(
    parse(many.join('\n')).extents.map(e => [e.sectors, e.fileName]),
    many.map((_, i) => [i, `s${i}`]),
  )
})

t.test('encodings', async t => {
  const NAME = (bytes: number[]) =>
    Buffer.concat([Buffer.from('RW 1 SPARSE "'), Buffer.from(bytes), Buffer.from('.vmdk"\n')])
  const cases: { encoding?: string; bytes: number[]; name: string }[] = [
    { bytes: [0xc3, 0xa9], name: 'é' },
    { bytes: [0xe9], name: 'é' },
    { bytes: [0x80, 0x92, 0x9f, 0xff, 0x81], name: '€’Ÿÿ\x81' },
    { encoding: 'UTF-8', bytes: [0xe4, 0xb8, 0xad], name: '中' },
    { encoding: 'UTF-8', bytes: [0xe4, 0xb8], name: 'ä¸' },
    { encoding: 'utf8', bytes: [0xc3, 0xa0], name: 'à' },
    { encoding: 'windows-1252', bytes: [0xe9, 0x80], name: 'é€' },
    { encoding: 'windows-1252', bytes: [0xc3, 0xa9], name: 'é' },
    { encoding: 'Windows-1251', bytes: [0xc4, 0xe8], name: 'Ди' },
    { encoding: 'GBK', bytes: [0xd6, 0xd0, 0xce, 0xc4], name: '中文' },
    // Valid UTF-8, too.
    { encoding: 'GBK', bytes: [0xd1, 0xa7], name: '学' },
    // The second byte is a backslash, and then a pipe.
    { encoding: 'GBK', bytes: [0x81, 0x5c, 0x81, 0x7c], name: '乗亅' },
    { encoding: 'gbk', bytes: [0xe9], name: 'é' },
    { encoding: 'Big5', bytes: [0xa4, 0xa4, 0xa4, 0xe5], name: '中文' },
    { encoding: 'Big5', bytes: [0xa5, 0x5c], name: '功' },
    { encoding: 'Shift_JIS', bytes: [0x95, 0x5c, 0x83, 0x66, 0xb1], name: '表デｱ' },
    { encoding: 'UTF-16LE', bytes: [0xc3, 0xa9], name: 'é' },
    { encoding: 'Klingon', bytes: [0xe9], name: 'é' },
    { encoding: 'GBK', bytes: [0x41], name: 'A' },
  ]
  for (const { encoding, bytes, name } of cases) {
    const head = encoding === undefined ? '' : `\nEncoding = "${encoding}"`
    const hint = Buffer.concat([Buffer.from('parentFileNameHint="'), Buffer.from(bytes)])
    const text = Buffer.concat([NAME(bytes), hint, Buffer.from(`"\n${head}\n`)])
    const found = parse(text)
    const title = `${encoding} ${Buffer.from(bytes).toString('hex')}`
    t.equal(found.extents[0]?.fileName, `${name}.vmdk`, title)
    t.equal(found.parentHint, name, title)
    t.equal(found.encoding, encoding)
  }
  t.equal(
    parse(
      Buffer.concat([Buffer.from('RW 1 ZERO\nparentFileNameHint=x'), Buffer.from([0xc3, 0xa0])]),
    ).parentHint,
    'xà',
    'A0 at a line end is no blank',
  )
  t.equal(parse('RW 1 ZERO\nparentFileNameHint=\u3000x\u00a0').parentHint, '\u3000x\u00a0')
})

const refused: { title: string; text: string; code?: string; says: RegExp }[] = [
  { title: 'nothing', text: '', says: /names no extent: no line of it says where/ },
  { title: 'no extent', text: HEAD, says: /names no extent/ },
  { title: 'a NUL first', text: `\0${withExtents('RW 1 ZERO')}`, says: /names no extent/ },
  { title: 'an extent as a comment', text: withExtents('#RW 1 ZERO'), says: /names no extent/ },
  {
    title: 'an unknown access',
    text: withExtents('WO 1 FLAT "a\x1b[2J" 0'),
    says: /access is not known: 'WO 1 FLAT "a\\x1b\[2J" 0'/,
  },
  {
    title: 'an unknown access and type',
    text: withExtents('RX 1 FLOT "a" 0'),
    says: /access is not known: 'RX/,
  },
  {
    title: 'an unknown type',
    text: withExtents('RW 1 QUANTUM "a" 0'),
    code: 'UNSUPPORTED',
    says: /type is not known: 'RW 1 QUANTUM "a" 0'/,
  },
  {
    title: 'no access',
    text: withExtents('4192256 SPARSE "a.vmdk"'),
    says: /access is not known|cut short/,
  },
  {
    title: 'access and size as one',
    text: withExtents('RW4192256 SPARSE "a.vmdk"'),
    says: /cut short: 'RW4192256/,
  },
  { title: 'an access alone', text: withExtents('NOACCESS'), says: /cut short: 'NOACCESS'/ },
  { title: 'no type', text: withExtents('RW 1 "a.vmdk" 0'), says: /cut short: 'RW 1 "a/ },
  { title: 'a size that became =', text: withExtents('RW = ZERO'), says: /no number: 'RW = ZERO'/ },
  { title: 'no size', text: withExtents('RW FLAT "a.vmdk" 0'), says: /cut short/ },
  {
    title: 'a size in hex',
    text: withExtents('RW 0x10 FLAT "a.vmdk" 0'),
    says: /size is no number: 'RW 0x10/,
  },
  {
    title: 'a size below 0',
    text: withExtents('RW -1 FLAT "a.vmdk" 0'),
    says: /size is no number/,
  },
  { title: 'no name', text: withExtents('RW 1 SPARSE'), says: /has no name: 'RW 1 SPARSE'/ },
  { title: 'an empty name', text: withExtents('RW 1 SPARSE ""'), says: /has no name/ },
  { title: 'a name without quotes', text: withExtents('RW 1 SPARSE a.vmdk'), says: /has no name/ },
  { title: 'a name with one quote', text: withExtents('RW 1 SPARSE "a.vmdk'), says: /has no name/ },
  { title: 'NOACCESS without a name', text: withExtents('NOACCESS 1 FLAT'), says: /has no name/ },
  { title: 'an offset below 0', text: withExtents('RW 1 FLAT "a" -1'), says: /has no name/ },
  {
    title: 'a long name',
    text: withExtents(`RW 1 SPARSE "${'é'.repeat(2048)}"`),
    says: /more than 4095 bytes: 'RW 1 SPARSE "é{147}…'/,
  },
  {
    title: 'a long hint',
    text: withExtents('RW 1 ZERO', `parentFileNameHint="${'p'.repeat(4096)}"`),
    says: /parentFileNameHint has more than 4095 bytes: 'p{160}…'/,
  },
  {
    title: 'a long tracking file',
    text: withExtents('RW 1 ZERO', `changeTrackPath="${'p'.repeat(4096)}"`),
    says: /changeTrackPath has more than/,
  },
  {
    title: 'an extent of 2^53 bytes',
    text: withExtents(`RW ${2 ** 44} ZERO`),
    says: /the disk is too large: the extent 'RW 17592186044416 ZERO' has over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'an extent of 2^64 sectors and one',
    text: withExtents('RW 18446744073709551617 ZERO'),
    says: /has over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'a size of 1000 digits',
    text: withExtents(`RW ${'9'.repeat(1000)} ZERO`),
    says: /has over 2\^53 bytes/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'extents of 2^53 bytes',
    text: withExtents(`RW ${2 ** 43} ZERO`, `RW ${2 ** 43} ZERO`),
    says: /with the extent 'RW 8796093022208 ZERO' it has over/,
    code: 'UNSUPPORTED',
  },
  {
    title: 'an offset of 2^53 bytes',
    text: withExtents(`RW 1 FLAT "a" ${2 ** 44 - 1}`),
    says: /reaches beyond 2\^53 bytes of its file/,
  },
  {
    title: 'an offset of 1000 digits',
    text: withExtents(`RW 1 FLAT "a" ${'9'.repeat(1000)}`),
    says: /reaches beyond/,
  },
  {
    title: 'an empty CID',
    text: 'CID=\nRW 1 ZERO',
    says: /descriptor's CID is '', which are no hex digits/,
  },
  {
    title: 'a CID of other letters',
    text: 'CID=1234567g\nRW 1 ZERO',
    says: /descriptor's CID is '1234567g'/,
  },
  {
    title: 'a CID of 17 digits',
    text: 'CID=01234567801234567\nRW 1 ZERO',
    says: /descriptor's CID is '01234567801234567'/,
  },
  {
    title: 'a parentCID of two words',
    text: 'parentCID=1234 5678\nRW 1 ZERO',
    says: /parentCID is '1234 5678'/,
  },
  {
    title: 'a version of letters',
    text: 'version=one\x07\nRW 1 ZERO',
    says: /version is 'one\\x07'/,
  },
  {
    title: 'too many extents',
    text: 'RW 1 ZERO\n'.repeat(MAX_EXTENT_LINES + 1),
    says: /more than 8192 extents/,
  },
  {
    title: 'too many ddb entries',
    text: `RW 1 ZERO\n${Array.from({ length: MAX_DDB_ENTRIES + 1 }, (_, i) => `ddb.${i}=1`).join('\n')}`,
    says: /more than 4096 ddb entries/,
  },
  {
    title: 'a long line',
    text: withExtents('RW 1 ZERO', `ddb.a="${'x'.repeat(MAX_DESCRIPTOR_LINE_LENGTH)}"`),
    says: /a line has more than 16384 characters: 'ddb.a="x{153}…'/,
  },
  {
    title: 'too long a text',
    text: `RW 1 ZERO\n${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES - 9)}`,
    says: /more than 1048576 bytes/,
  },
]
for (const { title, text, code = 'CORRUPT', says } of refused) {
  t.test(`refuses ${title}`, async t => {
    const error = errorOf(Buffer.from(text))
    t.equal(error?.code, code)
    t.match(error && oneLine(error), says)
    t.match(error && oneLine(error), /^\/images\/disk\.vmdk: .*; (restore|read it) /)
  })
}

t.test('limits that are just kept', async t => {
  const ddb = Array.from({ length: MAX_DDB_ENTRIES }, (_, i) => `ddb.${i}=1\nddb.${i}=2`).join('\n')
  t.equal(Object.keys(parse(`RW 1 ZERO\n${ddb}`).ddb).length, MAX_DDB_ENTRIES)
  const line = `ddb.a="${'x'.repeat(MAX_DESCRIPTOR_LINE_LENGTH - 8)}"`
  t.equal(parse(`RW 1 ZERO\n${line}`).ddb.a?.length, MAX_DESCRIPTOR_LINE_LENGTH - 8)
  t.equal(parse(`RW 1 ZERO\n${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES - 10)}`).extents.length, 1)
  t.equal(parse(`RW 1 ZERO\n#${'x'.repeat(100_000)}`).extents.length, 1, 'a long comment')
  t.equal(
    parse(Buffer.concat([Buffer.from('RW 1 ZERO\n\0'), Buffer.alloc(2 ** 21, 65)])).extents.length,
    1,
  )
})

t.test('probing', async t => {
  const yes = [
    '# Disk DescriptorFile\n',
    '#disk  DESCRIPTORFILE',
    '\r\n  # Disk DescriptorFile of mine\nanything',
    'version=1',
    '\ufeffversion=1\n',
    '\n\n  \t\n# é\n#\r\n  VERSION \t = "1"\r\n',
    '# Disk DescriptorFile\nversion=1\n\0\0\0\0',
    // As QEMU leaves it when the new CID is shorter by two digits, or by seven.
    '# Disk DescriptorFile\nversion=1\n\0\n\0\0\0',
    '# Disk DescriptorFile\nversion=1\n\x00483647"\0\0\0',
  ]
  for (const head of yes) t.equal(isDescriptor(Buffer.from(head)), true, JSON.stringify(head))
  const no = [
    '',
    '\n\n',
    '# a script\n',
    'versions=1',
    'version',
    'version 1',
    'CID=1\nversion=1',
    '#!/bin/sh\necho\nversion=1',
    'Disk DescriptorFile',
    '# Disk DescriptorFiction',
    'KDMV# Disk DescriptorFile',
    '\0version=1',
    'version=1\x01',
    '# Disk DescriptorFile\n\x00\x01',
    '# Disk DescriptorFile\nversion=1\n\x7fELF',
    '# Disk DescriptorFile\nversion=1\n\0CID=',
    '# Disk DescriptorFile\nversion=1\n\0RW 1 ZER',
    '# Disk DescriptorFile\nversion=1\n\0\n\0\0\0\0\0\0\0x',
  ]
  for (const head of no) t.equal(isDescriptor(Buffer.from(head)), false, JSON.stringify(head))
  t.equal(isDescriptor(Buffer.alloc(512)), false)
  t.equal(isDescriptor(Buffer.alloc(512, 0xff)), false)
  const within = Buffer.concat([
    Buffer.alloc(100, 1),
    Buffer.from('version=1\n\0\0'),
    Buffer.alloc(9, 1),
  ])
  t.equal(isDescriptor(within.subarray(100, 112)), true, 'a part of a buffer')
  t.equal(isDescriptor(within.subarray(100)), false)
})

/** What parsing throws, if it does; anything but an ImageError fails the test. */
function errorOf(bytes: Buffer): ImageError | undefined {
  try {
    parseDescriptor(bytes, PATH)
    return undefined
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    return error
  }
}

t.test('a flipped bit never loses an extent', async t => {
  const lines = ['RW 8323072 SPARSE', 'RDONLY 63 FLAT', 'NOACCESS 9 ZERO', 'RW 77 VMFSRAW']
  const tails = [' "s001.vmdk"', ' "pt.vmdk" 0', '', ' "vml"']
  let flips = 0
  for (const [index, line] of lines.entries()) {
    for (let bit = 0; bit < line.length * 8; bit++) {
      const bytes = Buffer.from(line)
      bytes[bit >> 3] = (bytes[bit >> 3] as number) ^ (1 << (bit & 7))
      // What begins with NUL ends the text, by rule.
      if (bytes.includes(0)) continue
      const all = lines.map((other, i) =>
        Buffer.concat([i === index ? bytes : Buffer.from(other), Buffer.from(`${tails[i]}\n`)]),
      )
      flips++
      const text = Buffer.concat([Buffer.from(HEAD), ...all])
      if (errorOf(text) === undefined && parse(text).extents.length !== lines.length) {
        t.fail(`lost: ${bytes.toString('latin1')}`)
      }
    }
  }
  t.ok(flips > 400)
})

t.test('texts that take long where a search goes back', async t => {
  const K = 1024
  const texts = [
    `${' '.repeat(K * K - 1)}x`,
    `${' '.repeat(16 * K - 2)}x\n`.repeat(63),
    `${'a'.repeat(8 * K)}${' '.repeat(8 * K - 2)}x\n`.repeat(63),
    `RW 1 FLAT ${'" 5x'.repeat(4 * K - 8)}\n`.repeat(63),
    `RW 1 FLAT "${'"'.repeat(16 * K - 20)}\n`.repeat(63),
    `RW 1 FLAT "a${'" 9'.repeat(5 * K)}\n`.repeat(63),
    `RW 1 FLAT "a"${' '.repeat(8 * K)}${'9'.repeat(8 * K - 30)}x\n`.repeat(63),
    `a="${'" #'.repeat(5 * K)}x\n`.repeat(63),
    `a=${' #'.repeat(5 * K)}x\n`.repeat(63),
    '\n'.repeat(K * K),
    'é\n'.repeat(K * 340),
    'a=\n'.repeat(K * 340),
    'RW 1 ZERO\r'.repeat(K * 100),
  ]
  for (const text of texts) {
    const start = cpuMs()
    errorOf(Buffer.from(text))
    isDescriptor(Buffer.from(text))
    const took = cpuMs() - start
    t.ok(took < 4000, `${JSON.stringify(text.slice(0, 20))}: ${Math.round(took)} ms`)
  }
})

/** Some bytes of `base` changed, taken away, doubled or swapped for tokens that mean something. */
const TOKENS = [
  '\n',
  '\r\n',
  '"',
  '=',
  '#',
  '\0',
  ' ',
  'RW ',
  'FLAT',
  'CID=',
  'ddb.',
  '9'.repeat(20),
  '\xff\xfe',
  '\xe4\xb8',
  'encoding="GBK"\n',
  'x'.repeat(5000),
]
const mutated = (bases: string[]): fc.Arbitrary<Buffer> => {
  const edit = fc.record({
    at: fc.double({ min: 0, max: 1, noNaN: true }),
    removed: fc.nat(20),
    inserted: fc.oneof(
      fc.constantFrom(...TOKENS).map(token => Buffer.from(token, 'latin1')),
      fc.uint8Array({ maxLength: 4 }).map(bytes => Buffer.from(bytes)),
    ),
  })
  return fc
    .record({
      base: fc.constantFrom(...bases),
      edits: fc.array(edit, { minLength: 1, maxLength: 5 }),
    })
    .map(({ base, edits }) =>
      edits.reduce((bytes, { at, removed, inserted }) => {
        const from = Math.floor(at * bytes.length)
        return Buffer.concat([bytes.subarray(0, from), inserted, bytes.subarray(from + removed)])
      }, Buffer.from(base)),
    )
}

t.test('mutations', async t => {
  let taken = 0
  const runs = await holds(mutated(whole.map(({ text }) => text)), 1000, bytes => {
    isDescriptor(bytes)
    if (errorOf(bytes) !== undefined) return
    taken++
    const found = parseDescriptor(bytes, PATH)
    const total = found.extents.reduce((sum, { sectors }) => sum + sectors, 0)
    if (found.extents.length === 0 || !Number.isSafeInteger(total * 512)) throw new Error('size')
    for (const cid of [found.cid, found.parentCid]) {
      if (!(Number.isInteger(cid) && cid >= 0 && cid < 2 ** 32)) throw new Error(`CID ${cid}`)
    }
    for (const { type, fileName, startSectors, sectors } of found.extents) {
      if ((type === 'ZERO') !== (fileName === undefined)) throw new Error('name')
      if (fileName === '' || fileName?.includes('\0')) throw new Error('name')
      if (!Number.isSafeInteger((startSectors + sectors) * 512)) throw new Error('offset')
    }
    structuredClone(found)
  })
  t.ok(runs >= 1000, `${runs} runs`)
  t.ok(taken > 100 && taken < runs, `${taken} of them still parse`)
})

interface QemuInfo {
  readonly 'virtual-size': number
  readonly 'format-specific': {
    readonly data: {
      readonly cid: number
      readonly 'parent-cid': number
      readonly 'create-type': string
      readonly extents: { 'virtual-size': number; filename: string; format: string }[]
    }
  }
}

t.test('qemu-img', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const create = (name: string, subformat: string, ...rest: string[]) =>
    run('qemu-img', [
      ...['create', '-q', '-f', 'vmdk', '-o', `subformat=${subformat}`, '--'],
      ...[join(folder, name), ...rest],
    ])
  const compare = async (name: string): Promise<Descriptor> => {
    const path = join(folder, name)
    const info: QemuInfo = JSON.parse(
      await run('qemu-img', ['info', '--output=json', '-f', 'vmdk', path]),
    )
    const { data } = info['format-specific']
    const file = readFileSync(path).subarray(0, 2 ** 20)
    const isEmbedded = file.toString('latin1', 0, 4) === 'KDMV'
    t.equal(isDescriptor(file.subarray(0, 512)), !isEmbedded, `${name}: by its head`)
    // The descriptor's offset and size, in sectors.
    const at = isEmbedded ? file.readUInt32LE(28) * 512 : 0
    const bytes = isEmbedded ? file.readUInt32LE(36) * 512 : file.length
    const found = parseDescriptor(file.subarray(at, at + bytes), path)
    t.equal(found.cid, data.cid, `${name}: CID`)
    t.equal(found.parentCid, data['parent-cid'], `${name}: parentCID`)
    t.equal(found.createType, data['create-type'], `${name}: createType`)
    t.strictSame(
      found.extents.map(e => [e.access, e.sectors * 512, e.startSectors]),
      data.extents.map(e => ['RW', e['virtual-size'], 0]),
      `${name}: extents`,
    )
    // Of a single sparse extent QEMU gives no type, but the compression or nothing.
    if (!isEmbedded) {
      t.strictSame(
        found.extents.map(e => [e.type, join(folder, e.fileName as string)]),
        data.extents.map(e => [e.format, e.filename]),
      )
    }
    t.equal(
      found.extents.reduce((sum, e) => sum + e.sectors * 512, 0),
      info['virtual-size'],
    )
    return found
  }
  const subformats = [
    'monolithicSparse',
    'monolithicFlat',
    'twoGbMaxExtentSparse',
    'twoGbMaxExtentFlat',
    'streamOptimized',
  ]
  for (const subformat of subformats) {
    await create(`a ${subformat}.vmdk`, subformat, '5368709632')
    const found = await compare(`a ${subformat}.vmdk`)
    t.equal(found.createType, subformat)
    t.equal(found.parentCid, NO_PARENT_CID)
    t.equal(found.ddb.adaptertype, 'ide')
  }
  const base = join(folder, 'a monolithicSparse.vmdk')
  await run('qemu-img', [
    ...['create', '-q', '-f', 'vmdk', '-F', 'vmdk', '-b', base],
    ...['-o', 'hwversion=6', join(folder, 'child.vmdk')],
  ])
  const child = await compare('child.vmdk')
  t.equal(child.parentHint, base)
  t.equal(child.parentCid, (await compare('a monolithicSparse.vmdk')).cid)

  // Short CIDs, of which QEMU makes one in 16, and what it takes besides.
  await create('b.vmdk', 'monolithicFlat', '1M')
  const text = readFileSync(join(folder, 'b.vmdk'), 'latin1')
  const edits: [name: string, from: RegExp, to: string][] = [
    ['short', /^CID=.*$/m, 'CID=8f32b4'],
    ['upper', /^CID=.*$/m, 'CID=ABCDEF01'],
    ['dos', /\n/g, '\r\n'],
    ['spaces', /^(RW.*)$/m, '$1  '],
  ]
  for (const [name, from, to] of edits) {
    writeFileSync(join(folder, `b-${name}.vmdk`), text.replace(from, to), 'latin1')
    await compare(`b-${name}.vmdk`)
  }
})
