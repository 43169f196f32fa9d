/**
 * Several threads read and write one cow disk at once, over its file: no sector is torn, no read is stale
 * after a write that returned, and the image is sound in the end.
 */
import { readFileSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkCow } from '../../../src/formats/cow/check.js'
import { noise } from '../../fixtures/model.js'
import { runThreads } from '../../soundness/thread-suite.js'
import { tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { modelOf, SECTOR, sectorsOf, storeOf } from './images.js'

const SIZE = 1024 * 1024
const SECONDS = 1_083_827_289

for (const layout of ['qemu-x86-64', 'uml-3'] as const) {
  t.test(layout, async t => {
    const folder = tempFolder(t)
    const file = join(folder, 'disk.cow')
    const base = join(folder, 'base.raw')
    const parent = noise(SIZE, 3)
    const sectors = sectorsOf([[100, 300]])
    const spec = { layout, sizeBytes: SIZE, sectors, backing: base, seconds: SECONDS }
    writeFileSync(file, storeOf(spec).built.bytes)
    writeFileSync(base, parent)
    utimesSync(base, SECONDS, SECONDS)
    await runThreads(t, file, 'cow', { disk: modelOf(spec, parent), snapshots: [] })
    const after = checkCow(new MemoryStore(file, readFileSync(file)))
    t.match(after, { corruptions: 0, leaks: 0, totalClusters: SIZE / SECTOR })
    t.ok(readFileSync(base).equals(parent), 'the backing file is as it was')
  })
}
