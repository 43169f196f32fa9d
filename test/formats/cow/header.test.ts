import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { type CowHeader, readCowHeader } from '../../../src/formats/cow/header.js'
import type { Store } from '../../../src/io/store.js'
import { buildCow, type CowSpec, LAYOUTS, type Layout } from '../../fixtures/cow-builder.js'
import { needs, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { thrownBy } from '../vmdk/grains.js'
import { modelOf, readCow, SECTOR, sectorsOf, storeOf } from './images.js'

const SCRIPT = fileURLToPath(new URL('../../../scripts/make-cow.mjs', import.meta.url))
const SECONDS = Date.UTC(2004, 4, 6, 7, 8, 9) / 1000
const SIZE = 2051 * SECTOR
const WRITTEN = [
  [0, 1],
  [3, 2],
  [7, 10],
  [1023, 2],
  [1200, 300],
  [2050, 1],
] as const

/** Where the fields are, written down once more, in bytes; sums for a disk of `SIZE`. */
const PLACES = {
  'qemu-x86-64': { seconds: 1032, size: 1040, sector: 1048, bitmap: 1056, data: 1536 },
  'qemu-i386': { seconds: 1032, size: 1036, sector: 1044, bitmap: 1048, data: 1536 },
  'uml-2': { seconds: 4104, size: 4108, sector: 4116, bitmap: 4120, data: 4608 },
  'uml-3': { seconds: 8, size: 12, sector: 20, bitmap: 8192, data: 12288 },
  'uml-3-broken': { seconds: 8, size: 16, sector: 24, bitmap: 8192, data: 12288 },
} satisfies Record<Layout, object>

const line = (what: string, sector: number): Buffer =>
  Buffer.alloc(SECTOR, `${what} ${String(sector).padStart(6, '0')}\n`)

t.test('the script and the builder make the same bytes, and they are read', t => {
  const folder = tempFolder(t)
  execFileSync(process.execPath, [SCRIPT, folder])
  const base = readFileSync(join(folder, 'base.raw'))
  const sectors = new Map(
    [...sectorsOf(WRITTEN).keys()].map(sector => [sector, line('written', sector)]),
  )
  for (const layout of LAYOUTS) {
    const backing = layout.startsWith('qemu') ? 'base.raw' : '/home/sam/uml/base.raw'
    const spec = { layout, sizeBytes: SIZE, sectors, backing, seconds: SECONDS }
    const made = readFileSync(join(folder, `${layout}.cow`))
    t.ok(buildCow(spec).bytes.equals(made), `${layout}: the same bytes`)
    const store = new MemoryStore(layout, made)
    const { bitmap, data } = PLACES[layout]
    t.same(readCowHeader(store), {
      layout,
      backingName: backing,
      backingSeconds: SECONDS,
      sizeBytes: SIZE,
      sectorBytes: SECTOR,
      bitmapOffset: bitmap,
      bitmapBytes: 257,
      dataOffset: data,
      warnings: [],
    } satisfies CowHeader)
    const expected = modelOf({ sizeBytes: SIZE, sectors }, base)
    t.ok(readCow(store, base).equals(expected), `${layout}: the disk`)
  }
  t.end()
})

t.test('fields at their places', t => {
  for (const layout of LAYOUTS) {
    const poked = (change: (bytes: Buffer) => void, at: Partial<CowSpec> = {}): CowHeader => {
      const { bytes } = buildCow({ layout, sizeBytes: SIZE, backing: 'base.raw', ...at })
      const all = Buffer.concat([bytes, Buffer.alloc(2 ** 20)])
      change(all)
      return readCowHeader(new MemoryStore(layout, all))
    }
    const { seconds, size } = PLACES[layout]
    t.equal(poked(bytes => bytes.writeUInt32BE(77, seconds)).backingSeconds, 77, layout)
    const large = poked(bytes => bytes.writeBigUInt64BE(2n ** 32n + 512n, size))
    t.equal(large.sizeBytes, 2 ** 32 + 512, layout)
    const name = layout === 'uml-3' ? 32 : layout === 'uml-3-broken' ? 36 : 8
    const named = poked(bytes => bytes.write('häß.raw\0', name))
    t.equal(named.backingName, 'häß.raw', layout)
    if (!layout.startsWith('uml-3')) {
      t.equal(poked(bytes => bytes.fill(0, name, name + 8)).backingName, undefined, layout)
    }
  }
  t.end()
})

t.test('the alignment of version 3', t => {
  for (const layout of ['uml-3', 'uml-3-broken'] as const) {
    for (const alignment of [512, 8192, 65536]) {
      const sectors = sectorsOf(WRITTEN)
      const { built, store } = storeOf({
        layout,
        sizeBytes: SIZE,
        sectors,
        backing: 'b',
        alignment,
      })
      const { bitmapOffset, dataOffset } = readCowHeader(store)
      t.same(
        { bitmapOffset, dataOffset },
        { bitmapOffset: built.bitmapAt, dataOffset: built.dataAt },
      )
      t.ok(readCow(store).equals(modelOf({ sizeBytes: SIZE, sectors })))
    }
  }
  t.end()
})

t.test('QEMU: both structures may read 512, and the length of the file decides', t => {
  // For i386 the guest's own bits lie where the other structure has its sector size: sector 17 alone.
  const i386 = storeOf({
    layout: 'qemu-i386',
    sizeBytes: 64 * SECTOR,
    sectors: sectorsOf([[17, 1]]),
  })
  t.equal(i386.built.bytes.readUInt32BE(1048), 512)
  t.match(readCowHeader(i386.store), { layout: 'qemu-i386', sizeBytes: 64 * SECTOR })
  // For x86-64 it is the size's lower half: 512 bytes more than a multiple of 4 GiB.
  const sizeBytes = 2 ** 32 + 512
  const x86 = storeOf({ layout: 'qemu-x86-64', sizeBytes })
  t.equal(x86.built.bytes.readUInt32BE(1044), 512)
  t.match(readCowHeader(x86.store), { layout: 'qemu-x86-64', sizeBytes })
  t.match(readCowHeader(storeOf({ layout: 'qemu-x86-64', sizeBytes: 512 }).store), {
    layout: 'qemu-x86-64',
    sizeBytes: 512,
  })
  t.end()
})

t.test('sizes that are no multiple of 512', t => {
  const sizes = LAYOUTS.map(layout => {
    const { bytes } = buildCow({ layout, sizeBytes: 8 * SECTOR, backing: 'b' })
    bytes.writeBigUInt64BE(8n * 512n + 100n, PLACES[layout].size)
    const all = Buffer.concat([bytes, Buffer.alloc(8192)])
    return readCowHeader(new MemoryStore(layout, all)).sizeBytes
  })
  // QEMU counts whole sectors, in its sum for the bitmap as well; UML has the size of its backing file.
  t.same(sizes, [4096, 4096, 4196, 4196, 4196])
  const header = readCowHeader(storeOf({ layout: 'uml-3', sizeBytes: 4196, backing: 'b' }).store)
  t.match(header, { bitmapBytes: 2 })
  t.end()
})

t.test('the bits that UML of version 2 does not count', t => {
  const counted = (sectors: number) => {
    const { store } = storeOf({ layout: 'uml-2', sizeBytes: sectors * SECTOR, backing: 'b' })
    const { bitmapBytes, dataOffset, warnings } = readCowHeader(store)
    return { bitmapBytes, dataOffset, warnings }
  }
  t.same(counted(8), { bitmapBytes: 1, dataOffset: 4608, warnings: [] })
  t.same(counted(9), { bitmapBytes: 2, dataOffset: 4608, warnings: [] }, 'there is room')
  const noRoom = /its last 3 sectors have no place in its bitmap/
  const none = counted(488 * 8 + 3)
  t.match(none, { bitmapBytes: 488, dataOffset: 4608, warnings: [noRoom] }, 'data begin there')
  t.match(counted(488 * 8), { bitmapBytes: 488, dataOffset: 4608, warnings: [] })
  t.end()
})

t.test('files that are no image, and broken images', t => {
  const thrown = (bytes: Buffer, fileBytes = bytes.length): { code: string; text: string } => {
    const store: Store = new MemoryStore('disk.cow', bytes.subarray(0, fileBytes))
    const { code, message, context } = thrownBy(() => readCowHeader(store))
    t.equal(context.path, 'disk.cow')
    t.match(context.hint, /\w/, `a way out: ${message}`)
    return { code, text: `${message}; ${context.hint}` }
  }
  t.match(thrown(Buffer.alloc(8192)), { code: 'NOT_AN_IMAGE', text: /no cow image/ })
  t.match(thrown(Buffer.alloc(0)), { code: 'NOT_AN_IMAGE', text: /no cow image/ })
  t.match(thrown(Buffer.from('OOOM')), { code: 'NOT_AN_IMAGE', text: /cut off after 4 bytes/ })

  const versionOne = { code: 'UNSUPPORTED', text: /UML, version 1, .*uml_moo/ }
  const little = Buffer.alloc(512)
  little.write('MOOO')
  little.writeUInt32LE(1, 4)
  t.match(thrown(little), versionOne)
  const big = Buffer.alloc(512)
  big.write('OOOM')
  big.writeUInt32BE(1, 4)
  t.match(thrown(big), versionOne)
  big.writeUInt32BE(4, 4)
  t.match(thrown(big), { code: 'UNSUPPORTED', text: /cow version 4 is not known/ })

  const of = (layout: Layout, change: (bytes: Buffer) => void = () => {}): Buffer => {
    const { bytes } = buildCow({ layout, sizeBytes: SIZE, backing: 'base.raw' })
    change(bytes)
    return bytes
  }
  for (const layout of LAYOUTS) {
    const { sector, size, bitmap } = PLACES[layout]
    const file = of(layout)
    for (let length = 8; length < bitmap + 257; length += 31) {
      const { code, text } = thrown(file, length)
      t.match(text, /cut off after \d+ bytes|beyond the end of the file|in no known layout/)
      t.not(code, 'MISSING')
    }
    t.match(thrown(file, bitmap + 256), { code: 'CORRUPT', text: /its bitmap ends at/ }, layout)
    for (const bytes of [0, 1, 513, 1024, 2 ** 32 - 1]) {
      const wrong = of(layout, all => all.writeUInt32BE(bytes, sector))
      t.match(thrown(wrong).code, 'UNSUPPORTED', `${layout}, sectors of ${bytes} bytes`)
    }
    for (const bytes of [
      2n ** 64n - 1n,
      2n ** 63n,
      2n ** 53n,
      2n ** 52n + 1n,
      2n ** 52n,
      2n ** 45n,
    ]) {
      const wrong = of(layout, all => all.writeBigUInt64BE(bytes, size))
      const { code, text } = thrown(wrong)
      const isTooLarge = bytes >= 2n ** 53n && text.includes('the disk is too large')
      t.equal(code, isTooLarge ? 'UNSUPPORTED' : 'CORRUPT', `${layout}, a disk of ${bytes} bytes`)
      t.match(text, /too large|a disk of \d+ bytes, above|beyond the end of the file/)
    }
    const name = layout === 'uml-3' ? 32 : layout === 'uml-3-broken' ? 36 : 8
    const endless = of(layout, all =>
      all.fill('x', name, name + (name === 8 && !layout.startsWith('uml') ? 1024 : 4096)),
    )
    t.match(thrown(endless), { code: 'CORRUPT', text: /does not end within its field/ }, layout)
  }
  for (const [layout, at] of [
    ['uml-3', 24],
    ['uml-3-broken', 28],
  ] as const) {
    for (const alignment of [0, 1, 256, 513, 4097, 2 ** 31, 2 ** 32 - 1]) {
      const wrong = of(layout, all => all.writeUInt32BE(alignment, at))
      t.match(thrown(wrong), { code: 'CORRUPT', text: /aligns data to \d+ bytes/ })
    }
  }
  const otherMap = of('uml-3', all => all.writeUInt32BE(1, 28))
  t.match(thrown(otherMap), { code: 'UNSUPPORTED', text: /map of sectors is of kind 1/ })
  t.end()
})

t.test('a C compiler lays the structures out as that', needs('gcc', 'nm'), t => {
  const folder = tempFolder(t)
  const lines = (name: string, fields: string, members: string[]) => [
    `struct ${name} { ${fields} };`,
    `char ${name}_all[sizeof(struct ${name})];`,
    ...members.map(m => `char ${name}_${m}[offsetof(struct ${name}, ${m})];`),
  ]
  const start = (bytes: number) => `uint32_t magic, version; char name[${bytes}];`
  const source = join(folder, 'cow.c')
  const text = [
    '#define offsetof(type, member) __builtin_offsetof(type, member)',
    'typedef __UINT32_TYPE__ uint32_t; typedef __INT32_TYPE__ int32_t; typedef __UINT64_TYPE__ uint64_t;',
    ...lines('qemu', `${start(1024)} int32_t mtime; uint64_t size; uint32_t sectorsize;`, [
      'mtime',
      'size',
      'sectorsize',
    ]),
    ...lines(
      'v3',
      `uint32_t magic, version, mtime; uint64_t size; uint32_t sectorsize, alignment, format; char name[4096];`,
      ['mtime', 'size', 'sectorsize', 'name'],
    ),
  ]
  writeFileSync(source, `${text.join('\n')}\n`)
  const sizes = (mode: string): Record<string, number> => {
    const object = join(folder, `cow${mode}.o`)
    execFileSync('gcc', [mode, '-fno-common', '-c', '-o', object, source])
    const listed = execFileSync('nm', ['-S', object], { encoding: 'utf8' })
    return Object.fromEntries(
      listed
        .trim()
        .split('\n')
        .map(each => {
          const [, bytes = '', , name = ''] = each.split(/\s+/)
          return [name, Number.parseInt(bytes, 16)]
        }),
    )
  }
  t.match(sizes('-m64'), {
    qemu_mtime: 1032,
    qemu_size: 1040,
    qemu_sectorsize: 1048,
    qemu_all: 1056,
    v3_mtime: 8,
    v3_size: 16,
    v3_sectorsize: 24,
    v3_name: 36,
    v3_all: 4136,
  })
  t.match(sizes('-m32'), {
    qemu_mtime: 1032,
    qemu_size: 1036,
    qemu_sectorsize: 1044,
    qemu_all: 1048,
    v3_size: 12,
    v3_sectorsize: 20,
    v3_name: 32,
    v3_all: 4128,
  })
  t.end()
})
