/** What QEMU says of VMDK images that cuts left, and what it reads in them: a sample. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { MemoryStore } from '../support/stores.js'
import { QemuShell } from './qemu-check.js'
import { readVmdk } from './vmdk-disk.js'
import { judgeVmdk } from './vmdk-judge.js'
import type { VmdkKind } from './vmdk-kinds.js'

/** Of so many images one is read by QEMU, too. */
const READ_EACH = 4
const OUTPUT = 'qemu.output'

/** Throws for the first image that QEMU finds fault with; resolves to how many it looked at. */
export async function qemuChecksVmdk(
  kind: VmdkKind,
  images: readonly (readonly MemoryStore[])[],
): Promise<number> {
  if (kind.folder === undefined) return 0
  // Extents keep their names.
  const folder = join(kind.folder, 'cut')
  mkdirSync(folder)
  const shell = new QemuShell(folder, OUTPUT)
  try {
    for (const [index, stores] of images.entries()) {
      for (const store of stores) writeFileSync(join(folder, store.path), store.bytes())
      const { path } = stores[0] as MemoryStore
      await mustPass(kind, shell, `check -f vmdk ${path}`)
      if (index % READ_EACH !== 0) continue
      await mustPass(kind, shell, `convert -f vmdk -O raw ${path} disk.raw`)
      const { disk } = readVmdk({ stores, parent: kind.parent })
      // QEMU (block/vmdk.c) reads the first tables alone, and only writes the redundant ones: where a cut left a grain in these, it shows what lies below.
      const agrees = judgeVmdk(stores).extents.every(each => each.disagreements.length === 0)
      if (agrees && !readFileSync(join(folder, 'disk.raw')).equals(disk)) {
        throw new Error(`${kind.title}: QEMU reads something else in image ${index}`)
      }
    }
  } finally {
    shell.end()
  }
  return images.length
}

async function mustPass({ title }: VmdkKind, shell: QemuShell, command: string): Promise<void> {
  const code = await shell.run(command)
  if (code !== 0) throw new Error(`${title}: qemu-img ${command}: exit ${code}, ${shell.said}`)
}
