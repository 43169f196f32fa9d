/** What a repair leaves, judged by QEMU: it is clean, and reads as before. */
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { repairQcow2 } from '../../src/formats/qcow2/repair.js'
import { damaged, damagedBytes, liesOverTables } from '../formats/qcow2/damage.js'
import { holds } from '../support/property.js'
import { attempt, needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

t.test('damaged images', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  const seen = { repaired: 0, read: 0 }
  await holds(damaged, 30, async sample => {
    const bytes = damagedBytes(sample)
    const store = new MemoryStore(image, bytes)
    const result = repaired(store)
    if (!result || result.before === result.after) return
    writeFileSync(image, bytes)
    const read = await disk(image)
    writeFileSync(image, store.bytes())
    const { corruptions, leaks, checkErrors } = result.after
    if (corruptions + leaks + checkErrors === 0) {
      seen.repaired++
      const { code, stderr } = await attempt('qemu-img', ['check', '-f', 'qcow2', image])
      if (code !== 0) throw new Error(`qemu-img check says ${code}: ${stderr}`)
    }
    if (!read || liesOverTables(result.before, sample)) return
    seen.read++
    const now = await disk(image)
    if (!now?.equals(read)) throw new Error('the disk reads otherwise')
  })
  t.ok(seen.repaired > 5 && seen.read > 5, JSON.stringify(seen))
})

/** Undefined where the image is refused. */
function repaired(store: MemoryStore) {
  try {
    return repairQcow2(store, 'all')
  } catch (error) {
    if ((error as Error).name === 'ImageError') return undefined
    throw error
  }
}

/** Undefined where it cannot be read to the end. */
async function disk(image: string): Promise<Buffer | undefined> {
  const raw = `${image}.raw`
  const { code } = await attempt('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', image, raw])
  if (code !== 0) return undefined
  const bytes = readFileSync(raw)
  rmSync(raw)
  return bytes
}
