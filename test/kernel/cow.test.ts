/** Mounts cow images, which no other program reads any more, and compares their bytes with the format. */
import { chmodSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildCow, LAYOUTS } from '../fixtures/cow-builder.js'
import {
  HERE,
  isRoot,
  mount,
  NO_LOG,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { run } from '../support/run.js'

const M = 2 ** 20
const SECTOR = 512
const SIZE = 4 * M
const SECONDS = 1_000_000_000

/** Returns the disk by the format: an image's sectors where its bitmap marks them, and the backing file's elsewhere. */
function diskOf(file: string, built: ReturnType<typeof buildCow>, below: Buffer): Buffer {
  const bytes = readFileSync(file)
  const disk = Buffer.from(below)
  for (let sector = 0; sector < SIZE / SECTOR; sector++) {
    const { at, mask } = built.bitOf(sector)
    if (((bytes[at] as number) & mask) === 0) continue
    const place = built.placeOf(sector)
    bytes.copy(disk, sector * SECTOR, place, place + SECTOR)
  }
  return disk
}

for (const layout of LAYOUTS) {
  t.test(`${layout}: read, written, read again`, noFuse(), async t => {
    // Permissions do not depend on the layout.
    const withUser = isRoot && layout === LAYOUTS[0]
    for (const place of withUser ? [HERE, await ordinaryUser(t)] : [HERE]) {
      await t.test(place.name, async t => {
        const folder = sharedFolder(t)
        const below = Buffer.alloc(SIZE, 'below')
        const base = join(folder, 'base.img')
        writeFileSync(base, below)
        utimesSync(base, SECONDS, SECONDS)
        const sectors = new Map([
          [0, Buffer.alloc(SECTOR, 1)],
          [9, Buffer.alloc(SECTOR, 9)],
          [8191, Buffer.alloc(SECTOR, 0xff)],
        ])
        // User-mode Linux keeps the path as it was given, and all of it.
        const backing = layout.startsWith('uml') ? base : 'base.img'
        const built = buildCow({ layout, sizeBytes: SIZE, backing, seconds: SECONDS, sectors })
        const file = join(folder, 'disk.cow')
        writeFileSync(file, built.bytes)
        // Sectors that were never written are holes.
        await run('fallocate', ['--dig-holes', file])
        chmodSync(file, 0o666)

        const args = layout.startsWith('uml') ? [] : ['--format', 'cow']
        const { folder: mnt, printed } = await mount(t, file, { place, args })
        t.equal(/format of its backing file/.test(printed.stderr), !layout.startsWith('uml'))
        const disk = join(mnt, 'disk.raw')
        const expected = diskOf(file, built, below)
        t.ok((await contentOf(place, disk)).equals(expected), 'read')
        const write = async (bytes: Buffer, seek: number) => {
          const piece = join(folder, 'piece')
          writeFileSync(piece, bytes)
          bytes.copy(expected, seek)
          await runIn(place, 'dd', [
            ...[`if=${piece}`, `of=${disk}`, 'conv=notrunc', 'oflag=seek_bytes', 'bs=1M'],
            `seek=${seek}`,
          ])
        }
        await write(Buffer.alloc(300_000, 0x42), 1_000_001)
        await write(Buffer.alloc(3, 0x43), 4 * SECTOR + 500)
        await write(Buffer.alloc(SECTOR, 0x44), 9 * SECTOR)
        await runIn(place, 'fallocate', ['-p', '-o', '2097152', '-l', '100000', disk])
        expected.fill(0, 2 * M, 2 * M + 100_000)
        t.ok((await contentOf(place, disk)).equals(expected), 'read back')
        t.equal((await vimgfs(place, ['umount', mnt])).code, 0)
        t.ok(diskOf(file, built, below).equals(expected), 'the image holds it')
        t.ok(readFileSync(base).equals(below), 'what lies below is what it was')
        const checked = await vimgfs(place, ['check', file])
        t.equal(checked.code, 0, checked.stdout)
        const info = JSON.parse((await vimgfs(place, ['info', '--output=json', file])).stdout)
        t.match(info, {
          format: 'cow',
          'virtual-size': SIZE,
          'backing-filename': backing,
          'format-specific': { data: { layout, 'backing-mtime': SECONDS } },
        })
      })
    }
  })
}

/** Copies a file in another process, with its holes. */
const contentOf = async (place: Place, file: string): Promise<Buffer> => {
  const copy = `${file.replace(/\/mnt\/.*/, '')}/copy`
  await runIn(place, 'cp', ['--sparse=auto', file, copy])
  t.equal(statSync(copy).size, SIZE)
  return readFileSync(copy)
}

t.test('a backing file that was written since', noFuse(), async t => {
  const folder = sharedFolder(t)
  const base = join(folder, 'base.img')
  writeFileSync(base, Buffer.alloc(SIZE))
  const bytes = (layout: (typeof LAYOUTS)[number]) =>
    buildCow({ layout, sizeBytes: SIZE, backing: base, seconds: 7 }).bytes
  for (const layout of LAYOUTS) {
    const file = join(folder, `${layout}.cow`)
    writeFileSync(file, bytes(layout))
    const { printed } = await mount(t, file, { args: READ_ONLY })
    t.equal(
      /another time of its last change/.test(printed.stderr),
      layout.startsWith('uml'),
      layout,
    )
  }
})

t.test('the first version, of the other byte order', noFuse(), async t => {
  const folder = sharedFolder(t)
  const file = join(folder, 'disk.cow')
  writeFileSync(file, Buffer.concat([Buffer.from('MOOO\x01\0\0\0'), Buffer.alloc(M)]))
  const { code, stderr } = await vimgfs(HERE, ['mount', ...NO_LOG, file, folder])
  t.equal(code, 1)
  t.match(stderr, /^vimgfs: [^\n]*version 1[^\n]*\n$/)
})
