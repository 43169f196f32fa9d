/** Parts of a disk that may not be written: they say so, stay as they are, and do not end writing elsewhere. */
import t from 'tap'
import { errnoOf } from '../../src/errors.js'
import { noise } from '../fixtures/model.js'
import { tempFolder } from '../support/run.js'
import { readDisk } from '../support/writable.js'
import { openVmdkWritable, readVmdk } from './vmdk-disk.js'
import { judgeVmdk } from './vmdk-judge.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'

const EROFS = 30
const SECTOR = 512

/** The split disk, with its flat extent read-only; and where that and the one of zeros are, in bytes. */
async function split(folder: string) {
  const recipe = VMDK_RECIPES.find(({ title }) => title === 'split')
  if (!recipe) throw new Error('no split disk')
  const { files, disk, unwritable } = await makeVmdkKind(recipe, folder)
  const stores = files.map(file => file.clone())
  const text = stores[0]?.bytes().toString() as string
  const changed = Buffer.from(text.replace('RW 96 FLAT', 'RDONLY 96 FLAT'))
  stores[0]?.truncate(0)
  stores[0]?.write(changed, 0, changed.length, 0)
  const flat = { offset: (unwritable?.offset as number) - 96 * SECTOR, length: 96 * SECTOR }
  const zeros = unwritable as { offset: number; length: number }
  return { stores, disk, flat, zeros }
}

const refused = { code: 'READ_ONLY' }

t.test('writes are refused, and only there', async t => {
  const { stores, disk, flat, zeros } = await split(tempFolder(t))
  const before = stores.map(store => store.bytes())
  const opened = openVmdkWritable({ stores })
  const bytes = noise(3 * SECTOR, 1)
  for (const { offset } of [flat, zeros]) {
    t.throws(() => opened.disk.write(bytes, 0, bytes.length, offset + 700), refused)
    t.throws(() => opened.disk.write(bytes, 0, 1, offset), refused)
  }
  t.throws(() => opened.disk.zero(flat.offset, SECTOR), refused)
  t.doesNotThrow(() => opened.disk.zero(zeros.offset, zeros.length))
  try {
    opened.disk.write(bytes, 0, 1, zeros.offset)
  } catch (error) {
    t.equal(errnoOf(error), EROFS)
  }
  t.equal(opened.disk.failure, '')
  t.ok(readDisk(opened).equals(disk))

  opened.disk.write(bytes, 0, bytes.length, 40)
  bytes.copy(disk, 40)
  opened.disk.close()
  t.ok(readVmdk({ stores }).disk.equals(disk))
  t.same(judgeVmdk(stores).corruptions, [])
  t.ok(
    stores
      .at(-1)
      ?.bytes()
      .equals(before.at(-1) as Buffer),
    'the flat extent is untouched',
  )
})

t.test(
  'a first write that is refused leaves the content ID, and every other byte, as it is',
  async t => {
    const { stores, disk, flat, zeros } = await split(tempFolder(t))
    const before = stores.map(store => store.bytes())
    const opened = openVmdkWritable({ stores })
    const bytes = noise(3 * SECTOR, 3)
    for (const { offset } of [flat, zeros]) {
      t.throws(() => opened.disk.write(bytes, 0, bytes.length, offset), refused)
    }
    t.throws(() => opened.disk.zero(flat.offset, SECTOR), refused)
    t.throws(() => opened.disk.write(Buffer.alloc(SECTOR), 0, SECTOR, flat.offset), refused)
    stores.forEach((store, i) => {
      t.ok(store.bytes().equals(before[i] as Buffer), `${store.path} is as it was`)
    })
    opened.disk.write(bytes, 0, bytes.length, 40)
    bytes.copy(disk, 40)
    opened.disk.close()
    t.notOk(stores[0]?.bytes().equals(before[0] as Buffer), 'a write that succeeds renews it')
    t.ok(readVmdk({ stores }).disk.equals(disk))
  },
)

t.test('zeros where the disk reads as zeros are no refusal, also as the first write', async t => {
  const { stores, disk, zeros } = await split(tempFolder(t))
  const opened = openVmdkWritable({ stores })
  t.doesNotThrow(() => opened.disk.zero(zeros.offset, zeros.length))
  t.doesNotThrow(() => opened.disk.write(Buffer.alloc(SECTOR), 0, SECTOR, zeros.offset))
  t.ok(readDisk(opened).equals(disk))
  opened.disk.close()
})

t.test('a write that reaches into such a part writes the bytes before it', async t => {
  const { stores, disk, flat } = await split(tempFolder(t))
  const opened = openVmdkWritable({ stores })
  const bytes = noise(4 * SECTOR, 2)
  const offset = flat.offset - 2 * SECTOR
  t.throws(() => opened.disk.write(bytes, 0, bytes.length, offset), refused)
  const now = readDisk(opened)
  t.ok(now.subarray(flat.offset).equals(disk.subarray(flat.offset)))
  t.ok(now.subarray(0, offset).equals(disk.subarray(0, offset)))
  opened.disk.close()
  t.ok(readVmdk({ stores }).disk.equals(now))
  const { corruptions, isUnclean } = judgeVmdk(stores)
  t.same({ corruptions, isUnclean }, { corruptions: [], isUnclean: false })
})

t.test('it cannot grow', async t => {
  const { stores, disk } = await split(tempFolder(t))
  const opened = openVmdkWritable({ stores })
  t.throws(() => opened.disk.grow(disk.length + SECTOR), { code: 'REFUSED' })
  t.equal(opened.disk.failure, '')
  t.equal(opened.disk.sizeBytes, disk.length)
})
