/** Power cuts and faults while images of all kinds become larger and smaller. */
import { join } from 'node:path'
import t from 'tap'
import { attempt, needs, tempFolder } from '../support/run.js'
import { cutChange, failChange } from './command-cuts.js'
import { QCOW2_KINDS, resizeChange, VMDK_KINDS } from './image-changes.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const ONLY = process.env.VIMGFS_TEST_KIND ?? ''
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const SIZE = LONG
  ? { perPlace: 30, places: 1000, sampleEvery: 10, faults: 1000 }
  : { perPlace: 1, places: 8, sampleEvery: 40, faults: 4 }
const K = 1024

const KINDS = { raw: { format: 'raw' }, ...QCOW2_KINDS, ...VMDK_KINDS }
for (const [index, [title, kind]] of Object.entries(KINDS).entries()) {
  if (!title.includes(ONLY)) continue
  t.test(title, needs('qemu-img'), async t => {
    const folder = join(tempFolder(t), 'images')
    // In the short form each kind becomes larger or smaller, in turns.
    const changes = [300 * K, -200 * K]
    const isChosen = (_: number, i: number) => LONG || 'hasBitmap' in kind || (i + index) % 2 === 0
    for (const change of changes.filter(isChosen)) {
      const one = await resizeChange(title, folder, kind, change)
      const check = ['check', '-q', '-f', 'qcow2', 'disk']
      const sample = async (cut: string) => {
        // QEMU would want the key.
        if (kind.format !== 'qcow2' || title.includes('LUKS')) return
        const { code, stderr, stdout } = await attempt('qemu-img', check, { cwd: cut })
        // 3: leaks at worst.
        if (code !== 0 && code !== 3) throw new Error(`${stdout}${stderr}`)
      }
      const { judged, after } = await cutChange(one, { ...SIZE, seed: SEED, sample })
      t.ok(judged > after && after > 0, `${one.title}: ${judged} cuts, ${after} after the change`)
      t.ok((await failChange(one, SIZE.faults)) > 0, `${one.title}: faults`)
    }
  })
}
