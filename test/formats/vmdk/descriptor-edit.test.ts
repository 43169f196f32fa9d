/** What a writer changes in descriptors: found where the parser reads it, and nothing besides. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../../../src/formats/limits.js'
import { type Descriptor, parseDescriptor } from '../../../src/formats/vmdk/descriptor.js'
import {
  type DescriptorEdit,
  descriptorEdits,
  descriptorPlaces,
} from '../../../src/formats/vmdk/descriptor-edit.js'
import { holds } from '../../support/property.js'
import { needs, run, tempFolder } from '../../support/run.js'
import { cpuMs } from '../../support/cpu.js'

const parse = (bytes: Buffer): Descriptor => parseDescriptor(bytes, '/images/disk.vmdk')
const LONG_ID = '0b0c5d3e9a2f4c1e8d7b6a5f7d1c5ee6'
const ESX = `# Disk DescriptorFile
version=3
encoding="UTF-8"
CID=7d1c5ee6
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 83886080 VMFS "web-flat.vmdk"

# Change Tracking File
changeTrackPath="web-ctk.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.longContentID = "${LONG_ID}"
`

function edited(bytes: Buffer, edits: readonly DescriptorEdit[]): Buffer {
  const after = Buffer.from(bytes)
  for (const edit of edits) edit.bytes.copy(after, edit.at)
  return after
}

/** A source of these numbers, which fails when it is asked again or for other digits. */
function numbers(digits: number, ...values: number[]): (digits: number) => number {
  return asked => {
    const value = values.shift()
    if (asked !== digits || value === undefined) throw new Error(`asked for ${asked} digits`)
    return value
  }
}

t.test('what VMware writes', async t => {
  const bytes = Buffer.from(ESX)
  t.strictSame(descriptorPlaces(bytes), {
    cid: { at: ESX.indexOf('7d1c5ee6'), digits: 8 },
    longContentIdAt: ESX.lastIndexOf('7d1c5ee6'),
    changeTrackAt: [ESX.indexOf('changeTrackPath')],
  })
  const random = numbers(8, 0xabc)
  const after = edited(bytes, descriptorEdits(bytes, { dropsChangeTracking: true, random }))
  t.equal(
    after.toString(),
    ESX.replace('CID=7d1c5ee6', 'CID=00000abc')
      .replace(LONG_ID, '0b0c5d3e9a2f4c1e8d7b6a5f00000abc')
      .replace('changeTrackPath', '#hangeTrackPath'),
  )
  const kept = edited(bytes, descriptorEdits(bytes, { dropsChangeTracking: false }))
  t.equal(parse(kept).changeTrackPath, 'web-ctk.vmdk')
  t.not(parse(kept).cid, 0x7d1c5ee6)
})

const places: { title: string; text: string; cid?: string; longId?: string; tracks?: string[] }[] =
  [
    { title: 'nothing', text: 'version=1\n' },
    { title: 'short digits', text: 'CID=8F32b4b\n', cid: '8F32b4b' },
    { title: 'one digit', text: 'CID=1', cid: '1' },
    {
      title: 'a first CID that is none, not the second',
      text: '\t cid \t= \t" not"\nCID="12ab"\n',
    },
    { title: 'a value in quotes', text: '\t cid \t= \t"12ab"\t# 34\n', cid: '12ab' },
    { title: 'a value of which a quote is missing', text: 'CID="12ab\n', cid: '12ab' },
    { title: 'a comment after it', text: 'CID=12ab #CID=3\n', cid: '12ab' },
    { title: 'carriage returns', text: 'version=1\r\nCID=12ab\r\n', cid: '12ab' },
    { title: 'only carriage returns', text: 'version=1\rCID=12ab\rparentCID=1\r', cid: '12ab' },
    { title: 'a byte order mark', text: '\ufeffCID=12ab\n', cid: '12ab' },
    {
      title: 'another CID before it',
      text: 'parentCID=1\n#CID=2\nxCID=3\nCID=4\nCID=5\n',
      cid: '4',
    },
    { title: 'letters', text: 'CID=12xy\nCID=1' },
    { title: 'nine digits', text: 'CID=123456789', cid: '123456789' },
    { title: 'digits after 0x', text: 'CID=0x8f32b4b1', cid: '8f32b4b1' },
    { title: 'no value', text: 'CID=\n' },
    { title: 'text after a NUL', text: 'version=1\n\0CID=1\n' },
    { title: 'a long ID', text: `DDB.longcontentid=${LONG_ID}`, longId: '7d1c5ee6' },
    { title: 'a long ID of 31 digits', text: `ddb.longContentID="${LONG_ID.slice(1)}"` },
    { title: 'a long ID of letters', text: `ddb.longContentID="${LONG_ID.replace('0', 'x')}"` },
    {
      title: 'the second long ID',
      text: `ddb.longContentID="1"\nddb.longContentID="${LONG_ID}"`,
    },
    {
      title: 'tracking in several lines',
      text: '# changeTrackPath="0"\nchangeTrackPath="1"\r\n  CHANGETRACKPATH = "2"\nchangeTrackPath=',
      tracks: ['changeTrackPath="1"', '  CHANGETRACKPATH', 'changeTrackPath='],
    },
    { title: 'another key', text: 'changeTrackPaths="1"\nx changeTrackPath="1"\n' },
    {
      title: 'text of an encoding of its own',
      text: 'encoding="GBK"\nparentFileNameHint="\xd6\xd0"\nCID=12ab\n',
      cid: '12ab',
    },
  ]
for (const { title, text, cid, longId, tracks = [] } of places) {
  t.test(`finds ${title}`, async t => {
    const isLatin1 = !text.includes('\ufeff')
    const bytes = Buffer.from(text, isLatin1 ? 'latin1' : 'utf8')
    const found = descriptorPlaces(bytes)
    const at = (from: number | undefined, digits: number) =>
      from === undefined ? undefined : bytes.toString('latin1', from, from + digits)
    t.equal(at(found.cid?.at, found.cid?.digits ?? 0), cid)
    t.equal(at(found.longContentIdAt, 8), longId)
    t.equal(found.changeTrackAt.length, tracks.length)
    for (const [i, from] of found.changeTrackAt.entries()) {
      t.equal(at(from, tracks[i]?.length ?? 0), tracks[i])
    }
  })
}

t.test('a part of a buffer', async t => {
  const all = Buffer.concat([Buffer.from('CID=1\n\0\0'), Buffer.from('CID=23\n\0CID=4')])
  t.strictSame(descriptorPlaces(all.subarray(8)).cid, { at: 4, digits: 2 })
})

t.test('new CIDs', async t => {
  const cases: { old: string; drawn: number; cid: string }[] = [
    { old: '12345678', drawn: 0x12345678, cid: '12345679' },
    { old: '12345678', drawn: 0xffffffff, cid: '00000001' },
    { old: '12345678', drawn: 0xfffffffe, cid: '00000001' },
    { old: '00000001', drawn: 0xfffffffe, cid: '00000002' },
    { old: '12345678', drawn: 0, cid: '00000001' },
    { old: 'FFFF', drawn: 0xffff, cid: '0001' },
    { old: '0001', drawn: 0, cid: '0002' },
    { old: 'f', drawn: 0xf, cid: '0' },
    { old: '0', drawn: 0, cid: '1' },
    { old: 'ffff', drawn: 0xfffe, cid: 'fffe' },
  ]
  for (const { old, drawn, cid } of cases) {
    const random = numbers(old.length, drawn)
    const bytes = Buffer.from(`CID=${old}\n`)
    const edits = descriptorEdits(bytes, { dropsChangeTracking: true, random })
    t.strictSame(edits, [{ at: 4, bytes: Buffer.from(cid) }], `${old} and ${drawn}`)
  }
  const drawn = new Set<string>()
  for (let i = 0; i < 64; i++) {
    const [edit] = descriptorEdits(Buffer.from('CID=0'), { dropsChangeTracking: false })
    drawn.add(String(edit?.bytes))
  }
  t.ok(drawn.size > 5 && !drawn.has('0'), 'random by itself')
})

t.test('without a CID nothing but tracking changes', async t => {
  const bytes = Buffer.from(`changeTrackPath="a"\nddb.longContentID=${LONG_ID}\nRW 1 ZERO\n`)
  const edits = descriptorEdits(bytes, { dropsChangeTracking: true })
  t.strictSame(edits, [{ at: 0, bytes: Buffer.from('#') }])
})

/** Descriptors as they may be, each line written in any of the ways that are read. */
const blanks = fc.constantFrom('', '', ' ', '\t', '  ')
const hex = (min: number, max: number) =>
  fc.string({
    unit: fc.constantFrom(...'0123456789abcdefABCDEF'),
    minLength: min,
    maxLength: max,
  })
const anyCase = (key: string) =>
  fc.constantFrom(
    key,
    key.toLowerCase(),
    key.toUpperCase(),
    `${key.slice(0, 1).toUpperCase()}${key.slice(1)}`,
  )
const keyLine = (key: string, value: fc.Arbitrary<string>) =>
  fc
    .tuple(
      anyCase(key),
      value,
      blanks,
      blanks,
      blanks,
      blanks,
      fc.boolean(),
      fc.constantFrom('', '', ' # CID=1'),
    )
    .map(([name, text, a, b, c, d, isQuoted, comment]) =>
      isQuoted
        ? `${a}${name}${b}=${c}"${text}"${d}${comment}`
        : `${a}${name}${b}=${c}${text}${d}${comment}`,
    )
const names = fc.constantFrom('a.vmdk', 'é "b".vmdk', '../中/c=d.vmdk', 'CID=7', 'changeTrackPath')
const line = fc.oneof(
  keyLine('CID', hex(1, 8)),
  keyLine('parentCID', hex(1, 8)),
  keyLine('changeTrackPath', names),
  keyLine('parentFileNameHint', names),
  keyLine('ddb.longContentID', hex(32, 32)),
  keyLine('ddb.longContentID', hex(8, 40)),
  keyLine('encoding', fc.constantFrom('UTF-8', 'windows-1252', 'GBK', 'Shift_JIS')),
  keyLine('ddb.comment', names),
  fc.constantFrom(
    '#CID=1',
    '',
    ' \t',
    '# changeTrackPath="x"',
    'RW 77 SPARSE "b.vmdk"',
    'RW 5 ZERO',
  ),
)
const descriptors = fc
  .record({
    lines: fc.array(fc.tuple(line, fc.constantFrom('\n', '\n', '\r\n', '\r')), { maxLength: 16 }),
    mark: fc.constantFrom('', '', '\ufeff'),
    encoding: fc.constantFrom('utf8' as const, 'latin1' as const),
    padding: fc.constantFrom('', '', '\0\0\0', '\0CID=1\nchangeTrackPath="y"\n'),
  })
  .map(({ lines, mark, encoding, padding }) =>
    Buffer.concat([
      Buffer.from(mark),
      Buffer.from(`${lines.flat().join('')}RW 1 ZERO\n${padding}`, encoding),
    ]),
  )

t.test('all else stays as it is', async t => {
  let changed = 0
  const runs = await holds(fc.tuple(descriptors, fc.boolean()), 500, ([bytes, drops]) => {
    const before = parse(bytes)
    const places = descriptorPlaces(bytes)
    const edits = descriptorEdits(bytes, { dropsChangeTracking: drops })
    const after = edited(bytes, edits)
    const found = parse(after)

    const hasCid = places.cid !== undefined
    if (hasCid === (found.cid === before.cid)) throw new Error(`CID ${found.cid}`)
    if (hasCid) changed++
    if ([0xffffffff, 0xfffffffe].includes(found.cid) && hasCid) throw new Error('a reserved CID')
    if (hasCid && found.cid === 0 && places.cid?.digits !== 1) throw new Error('CID 0')
    const hex8 = found.cid.toString(16).padStart(8, '0')
    const { longContentId: longId } = before
    const hasLongId = hasCid && longId !== undefined && /^[0-9a-f]{32}$/i.test(longId)
    const newLongId = hasLongId ? `${longId.slice(0, 24)}${hex8}` : longId
    const tracks = drops ? undefined : before.changeTrackPath
    const ddb = Object.assign(Object.create(null), before.ddb)
    if (hasLongId) ddb.longcontentid = newLongId
    const expected = {
      ...before,
      cid: found.cid,
      longContentId: newLongId,
      changeTrackPath: tracks,
      ddb,
    }
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
      throw new Error(`${JSON.stringify(found)} is not ${JSON.stringify(expected)}`)
    }

    // Only the edited places differ, and they do not overlap.
    const covered = new Set(edits.flatMap(({ at, bytes }) => [...bytes].map((_, i) => at + i)))
    if (covered.size !== edits.reduce((sum, edit) => sum + edit.bytes.length, 0))
      throw new Error('overlap')
    if (after.length !== bytes.length) throw new Error('length')
    for (let at = 0; at < bytes.length; at++) {
      if (bytes[at] !== after[at] && !covered.has(at)) throw new Error(`byte ${at}`)
    }

    // Each may be there without the others, as after a power cut.
    for (const edit of edits) {
      const alone = parse(edited(bytes, [edit]))
      if (alone.extents.length !== before.extents.length) throw new Error('extents')
    }
  })
  t.ok(runs >= 500, `${runs} runs`)
  t.ok(changed > 200, `${changed} with a CID`)
})

t.test('texts that take long where a search goes back', async t => {
  const K = 1024
  const texts = [
    `${' '.repeat(K * K - 1)}x`,
    `${' '.repeat(16 * K - 2)}x\n`.repeat(63),
    `CID${' '.repeat(16 * K)}x\n`.repeat(63),
    `CID=${' '.repeat(8 * K)}"${'" #'.repeat(2 * K)}x\n`.repeat(63),
    'changeTrackPath=\n'.repeat(60 * K),
    `CID=1\n${'\r'.repeat(K * K)}`,
  ]
  for (const text of texts) {
    const start = cpuMs()
    descriptorEdits(Buffer.from(text), { dropsChangeTracking: true })
    const took = cpuMs() - start
    t.ok(took < 4000, `${JSON.stringify(text.slice(0, 20))}: ${Math.round(took)} ms`)
  }
  const far = Buffer.from(`${'\n'.repeat(MAX_VMDK_DESCRIPTOR_BYTES)}CID=1`)
  t.equal(descriptorPlaces(far).cid, undefined, 'beyond what is read')
})

t.test('qemu-img', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  for (const subformat of ['monolithicSparse', 'monolithicFlat', 'twoGbMaxExtentSparse']) {
    const path = join(folder, `${subformat}.vmdk`)
    const create = ['create', '-q', '-f', 'vmdk', '-o', `subformat=${subformat}`, path, '3G']
    await run('qemu-img', create)
    const file = readFileSync(path)
    const isEmbedded = file.toString('latin1', 0, 4) === 'KDMV'
    // The descriptor's offset and size, in sectors.
    const at = isEmbedded ? file.readUInt32LE(28) * 512 : 0
    const bytes = isEmbedded ? file.readUInt32LE(36) * 512 : file.length
    const descriptor = file.subarray(at, at + bytes)
    const edits = descriptorEdits(Buffer.from(descriptor), { dropsChangeTracking: true })
    t.equal(edits.length, 1, `${subformat}: QEMU writes no long ID`)
    const before = parse(descriptor)
    for (const edit of edits) edit.bytes.copy(descriptor, edit.at)
    writeFileSync(path, file)
    const after = parse(descriptor)
    t.not(after.cid, before.cid)
    const info = JSON.parse(await run('qemu-img', ['info', '--output=json', '-f', 'vmdk', path]))
    t.equal(info['format-specific'].data.cid, after.cid, `${subformat}: the new CID`)
    t.equal(info['format-specific'].data['parent-cid'], 0xffffffff)
    t.equal(info['virtual-size'], 3 * 2 ** 30)
    await run('qemu-io', ['-f', 'vmdk', '-c', 'read 0 64k', path])
  }
})
