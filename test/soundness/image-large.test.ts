/**
 * Steps that change more tables than memory holds between two flushes: then a step flushes on its way, and the
 * order of things must hold there, too. And disks of many TiB, in sparse files.
 */
import { closeSync, ftruncateSync, openSync, readSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { storeOf } from '../../src/image/layer.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { asQemuNames, makeEncrypted } from '../peers/encrypted.js'
import { readAt } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { cowPlaces, FIELDS, type Layout } from './cow-judge.js'
import { imageSubject } from './image-scenario.js'
import { cutPower } from './power-cut.js'
import { makeQcowKind } from './qcow-kinds.js'
import { PASSPHRASE } from './reference-cipher.js'
import { Random, type Step } from './steps.js'

const M = 2 ** 20
const T = 2 ** 40
const CUTS = process.env.VIMGFS_TEST_LONG === '1' ? 300 : 6

/** One sector under each table, in no order. */
function scattered(sizeBytes: number, tableBytes: number): Step[] {
  const random = new Random(1)
  const tables = Array.from({ length: sizeBytes / tableBytes }, (_, i) => i)
  for (let i = tables.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[tables[i], tables[j]] = [tables[j] as number, tables[i] as number]
  }
  return tables.map(table => ({
    kind: 'write',
    offset: table * tableBytes + 512 * random.below(tableBytes / 512),
    length: 512,
    seed: table,
  }))
}

t.test('qcow: a sector under each table', async t => {
  const sizeBytes = 36 * M
  const recipe = { title: 'large', clusterBits: 9, l2Bits: 6, sizeBytes, isHeavy: true }
  const subject = imageSubject(await makeQcowKind(recipe, tempFolder(t)))
  const options = { seed: 1, cuts: CUTS, allUpTo: 0, recoverEvery: 6 }
  t.ok(cutPower(subject, scattered(sizeBytes, 2 ** 15), options) > 0)
})

const CACHES = { metadataBytes: M, clusterBytes: M }
const PIECE = 700

/** Opens the image, with the passphrase if it is encrypted. */
async function opened(path: string, options: OpenOptions) {
  const chain = openChain(path, options)
  const unlocked = await unlockChain(chain, async () => [Buffer.from(PASSPHRASE)])
  return {
    layers: unlocked.layers,
    entries: catalogOf(chain).entries,
    close: () => closeChain(chain),
  }
}

/** Writes a piece of one byte's value to each place, and looks at them again in a mount of its own. */
async function writeAndRead(
  path: string,
  format: NonNullable<OpenOptions['format']>,
  places: readonly number[],
): Promise<boolean> {
  const { layers, close } = await opened(path, { format, access: 'write' })
  const [top] = layers
  const memory = createDiskMemory(top, 1, storeOf(top))
  const views = new ViewSet(layers, CACHES, undefined, { memory, thread: 0 })
  const disk = views.disk as WritableDisk
  for (const [i, place] of places.entries()) disk.write(pieceOf(i), 0, PIECE, place)
  disk.close()
  close()
  const again = await opened(path, { format })
  const view = new ViewSet(again.layers, CACHES).viewOf(again.entries[0] as never)
  const isSame = places.every((place, i) => {
    const around = readAt(view, place - 100, PIECE + 200)
    const expected = Buffer.concat([Buffer.alloc(100), pieceOf(i), Buffer.alloc(100)])
    return around.equals(expected)
  })
  again.close()
  return isSame
}

/** QEMU makes its patterns of bytes, too. */
const pieceOf = (index: number): Buffer => Buffer.alloc(PIECE, 1 + (index % 255))

const FEW = [T / 2 + 3, 3 * T - 300, 2 ** 41 + 511, 15 * T + 12345, 16 * T - PIECE - 200]

const asRead = (places: readonly number[]): string[] =>
  places.flatMap((place, i) => ['-c', `read -P ${1 + (i % 255)} ${place} ${PIECE}`])

/** It ends well even where a pattern is another one. */
async function qemuFinds(image: readonly string[], places: readonly number[]): Promise<boolean> {
  const output = await run('qemu-io', ['-r', ...image, ...asRead(places)])
  return !/fail|error/i.test(output) && output.split('ops;').length === places.length + 1
}

t.test('qcow: 16 TiB', needs('qemu-img', 'qemu-io'), async t => {
  const path = join(tempFolder(t), 'image.qcow')
  await run('qemu-img', ['create', '-q', '-f', 'qcow', path, '16T'])
  t.ok(await writeAndRead(path, 'qcow', FEW))
  t.ok(await qemuFinds(['-f', 'qcow', path], FEW))
})

for (const [format, method] of [
  ['qcow', 'aes'],
  ['qcow2', 'aes'],
  ['qcow2', 'luks'],
] as const) {
  t.test(`${format}, ${method}: 16 TiB`, needs('qemu-img', 'qemu-io'), async t => {
    const image = { file: join(tempFolder(t), 'image'), format, passphrase: PASSPHRASE }
    await makeEncrypted(image, 16 * T, { format: method })
    t.ok(await writeAndRead(image.file, format, FEW))
    t.ok(await qemuFinds(asQemuNames(image), FEW))
  })
}

t.test('cow: 1 TiB, and more of the bitmap than memory holds between two flushes', async t => {
  const layout: Layout = 'QEMU, x86-64'
  const path = join(tempFolder(t), 'image.cow')
  const { version, sizeAt, sectorSizeAt, headerBytes } = FIELDS[layout]
  const { bitmapAt, bitmapBytes, dataAt } = cowPlaces(layout, T, 512)
  const header = Buffer.alloc(headerBytes)
  header.write('OOOM', 'latin1')
  header.writeUInt32BE(version, 4)
  header.writeBigUInt64BE(BigInt(T), sizeAt)
  header.writeUInt32BE(512, sectorSizeAt)
  const fd = openSync(path, 'w+')
  t.teardown(() => closeSync(fd))
  writeSync(fd, header, 0, header.length, 0)
  ftruncateSync(fd, bitmapAt + bitmapBytes)

  const slice = 4096 * 8 * 512
  const places = Array.from({ length: 1100 }, (_, i) => (i * 53 + 1) * slice + 1000 * i)
  places.push(T - PIECE - 100)
  t.ok(await writeAndRead(path, 'cow', places))

  const bits = Buffer.alloc(1)
  const bytes = Buffer.alloc(PIECE)
  const wrong = places.filter((place, i) => {
    const first = Math.floor(place / 512)
    const last = Math.floor((place + PIECE - 1) / 512)
    for (let sector = first; sector <= last; sector++) {
      readSync(fd, bits, 0, 1, bitmapAt + Math.floor(sector / 8))
      if (((bits[0] as number) & (1 << (sector % 8))) === 0) return true
    }
    readSync(fd, bytes, 0, PIECE, dataAt + place)
    return !bytes.equals(pieceOf(i))
  })
  t.same(wrong, [])
  t.ok(statSync(path).blocks * 512 < 64 * M, 'the rest is a hole')
})
