/** Lists of tar archives: what tar(1) writes in each of its formats, and archives that are damaged or hostile. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { isTar, membersOf } from '../../src/io/tar.js'
import { Random } from '../soundness/steps.js'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const LONG = `${'folder-with-a-long-name/'.repeat(9)}disk.raw`
const storeOf = (bytes: Buffer) => new MemoryStore('a.tar', bytes)
const list = (bytes: Buffer) => membersOf(storeOf(bytes))

/** Makes an archive of files with these contents. */
function tar(t: Test, files: Readonly<Record<string, Buffer>>, ...options: string[]): Buffer {
  const folder = tempFolder(t)
  for (const [name, bytes] of Object.entries(files)) {
    mkdirSync(join(folder, name, '..'), { recursive: true })
    writeFileSync(join(folder, name), '')
    if (bytes.every(byte => byte === 0)) truncateSync(join(folder, name), bytes.length)
    else writeFileSync(join(folder, name), bytes)
  }
  const archive = join(tempFolder(t), 'a.tar')
  execFileSync('tar', ['-cf', archive, ...options, '-C', folder, ...Object.keys(files)])
  return readFileSync(archive)
}

for (const format of ['v7', 'ustar', 'oldgnu', 'gnu', 'posix']) {
  t.test(`what tar writes as ${format}`, needs('tar'), async t => {
    const long = ['v7', 'ustar'].includes(format) ? 'folder/disk.raw' : LONG
    const files = { 'a.ovf': Buffer.from('<xml/>'), [long]: Buffer.alloc(3000, 7) }
    const bytes = tar(t, { ...files, empty: Buffer.alloc(0) }, `--format=${format}`)
    t.ok(isTar(storeOf(bytes)))
    const found = list(bytes)
    t.strictSame(
      found.map(({ name, kind, sizeBytes }) => [name, kind, sizeBytes]),
      [
        ['a.ovf', 'file', 6],
        [long, 'file', 3000],
        ['empty', 'file', 0],
      ],
    )
    for (const { name, startAt, sizeBytes } of found.slice(0, 2)) {
      t.ok(bytes.subarray(startAt, startAt + sizeBytes).equals(files[name] as Buffer), name)
    }
  })
}

t.test('files without their holes, folders, and names with ./', needs('tar'), async t => {
  const files = { './sub/sparse.raw': Buffer.alloc(2 ** 20), './last': Buffer.from('x') }
  for (const format of ['oldgnu', 'gnu', 'posix']) {
    for (const version of format === 'posix' ? ['0.0', '0.1', '1.0'] : ['0.0']) {
      const options = [`--format=${format}`, '-S', `--sparse-version=${version}`]
      const found = list(tar(t, files, ...options))
      const shown = found.map(({ name, kind }) => `${name} ${kind}`)
      t.strictSame(shown, ['sub/sparse.raw sparse', 'last file'], `${format} ${version}`)
    }
  }
  const archive = join(tempFolder(t), 'a.tar')
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'd'))
  writeFileSync(join(folder, 'd/x'), 'x')
  execFileSync('tar', ['-cf', archive, '-C', folder, './d'])
  t.strictSame(
    list(readFileSync(archive)).map(({ name, kind }) => [name, kind]),
    [
      ['d', 'other'],
      ['d/x', 'file'],
    ],
  )
})

/** A header with this size field, and the right checksum. */
function header(name: string, size: Buffer | string, type = '0'): Buffer {
  const block = Buffer.alloc(512)
  block.write(name)
  if (typeof size === 'string') block.write(size, 124)
  else size.copy(block, 124)
  block.write(`        ${type}`, 148)
  block.write('ustar\x0000', 257, 'latin1')
  const sum = block.reduce((sum, byte) => sum + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

const base256 = (value: bigint): Buffer => {
  const field = Buffer.alloc(12)
  field.writeBigUInt64BE(value, 4)
  field[0] = 0x80
  return field
}

t.test('sizes in base 256, also larger than the archive', async t => {
  const [one] = list(Buffer.concat([header('a', base256(5n)), Buffer.alloc(512, 1)]))
  t.match(one, { name: 'a', kind: 'file', startAt: 512, sizeBytes: 5 })
  const [cut] = list(header('a', base256(2n ** 40n)))
  t.match(cut, { startAt: 512, sizeBytes: 2 ** 40 }, 'the caller sees that it is cut off')
  const negative = Buffer.alloc(12, 0xff)
  for (const size of [base256(2n ** 60n), negative, '0000000009 ']) {
    t.throws(() => list(header('a', size)), { name: 'ImageError', message: /damaged/ })
  }
})

t.test('attributes of pax: a size, a name', async t => {
  const record = (key: string, value: string): string => {
    const bytes = Buffer.byteLength(`${key}${value}`) + 3
    let length = bytes + 1
    while (String(length).length + bytes !== length) length++
    return `${length} ${key}=${value}\n`
  }
  const archive = (text: string): Buffer => {
    const bytes = Buffer.alloc(512)
    bytes.write(text)
    const size = Buffer.byteLength(text).toString(8).padStart(11, '0')
    return Buffer.concat([header('pax', size, 'x'), bytes, header('a', '0'), Buffer.alloc(1024, 1)])
  }
  const [found] = list(archive(record('path', 'ä/disk=1') + record('size', '700')))
  t.match(found, { name: 'ä/disk=1', sizeBytes: 700 })
  for (const text of [
    '99 path=x\n',
    'path=x\n',
    '10 size=x\n',
    '0 a=b\n',
    '9 path=xy',
    '7 path\n',
  ]) {
    t.throws(() => list(archive(text)), { message: /attributes cannot be read|damaged/ }, text)
  }
})

t.test('a damaged header is one line that says where', needs('tar'), async t => {
  const bytes = tar(t, { a: Buffer.alloc(600), b: Buffer.alloc(5) })
  bytes[1536 + 3] = 0x41
  t.throws(() => list(bytes), {
    code: 'CORRUPT',
    message: 'this tar archive is damaged: of the header at byte 1536, its checksum is wrong',
  })
  t.throws(() => list(bytes.subarray(0, 1536 + 100)), { message: /the archive ends within it/ })
  t.strictSame(list(bytes.subarray(0, 1536)).length, 1, 'no end marker is needed')
})

t.test('names and attributes of megabytes are refused before they are read', async t => {
  for (const type of ['x', 'g', 'L', 'K']) {
    const store = storeOf(header('a', base256(2n ** 50n), type))
    t.throws(() => membersOf(store), { message: /a name of megabytes/ })
  }
})

t.test('changed archives: damage is reported, and the list ends', needs('tar'), async t => {
  const files = { [LONG]: Buffer.alloc(700, 1), b: Buffer.alloc(5), [`${LONG}2`]: Buffer.alloc(9) }
  const random = new Random(11)
  for (const format of ['gnu', 'posix']) {
    const whole = tar(t, files, `--format=${format}`)
    for (let round = 0; round < 400; round++) {
      const bytes = Buffer.from(whole)
      for (let n = random.below(4); n >= 0; n--) {
        bytes[random.below(bytes.length)] = random.below(256)
      }
      try {
        for (const { startAt, sizeBytes } of list(bytes)) {
          if (startAt % 512 !== 0 || sizeBytes < 0) t.fail(`round ${round}`)
        }
      } catch (error) {
        if ((error as Error).name !== 'ImageError') t.fail(`round ${round}: ${error}`)
      }
    }
  }
})
