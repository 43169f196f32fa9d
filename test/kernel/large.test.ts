/**
 * A large disk with three snapshots, whole: each file is, to the byte, what qemu-img makes of it.
 * VIMGFS_TEST_GIB sets its size; 50 takes some minutes.
 */
import { randomFillSync } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { call, HERE, mount, noFuse, READ_ONLY, sharedFolder } from '../support/mount.js'
import { needs, run } from '../support/run.js'
import { convert } from './images.js'

const GIB = Number(process.env.VIMGFS_TEST_GIB ?? 4)
const MIB = 2 ** 20
const WRITES = 100
const isLong = process.env.VIMGFS_TEST_LONG === '1'

t.test(`${GIB} GiB`, { ...needs('qemu-img', 'qemu-io'), ...noFuse() }, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  const source = join(folder, 'source')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, `${GIB}G`])
  const states = ['first', 'second', 'third', undefined]
  for (const [round, snapshot] of states.entries()) {
    writeFileSync(source, randomFillSync(Buffer.alloc(MIB)))
    const step = Math.floor((GIB * 1024 * MIB - MIB) / WRITES / 512) * 512
    const writes = Array.from({ length: WRITES }, (_, index) => {
      const bytes = 512 * (1 + ((index * 37) % 400))
      // From round to round half of the places are the same.
      const offset = index * step + (index % 2 ? round * 300 * 512 : 0)
      return ['-c', `write -q -s ${source} ${offset} ${bytes}`]
    })
    await run('qemu-io', ['-f', 'qcow2', ...writes.flat(), image])
    if (snapshot) await run('qemu-img', ['snapshot', '-c', snapshot, image])
  }
  const { file } = await mount(t, image, { args: READ_ONLY })
  // Comparing takes longest. The oldest snapshot has the most of its clusters to itself.
  for (const snapshot of isLong ? states : [states[0], undefined]) {
    const raw = await convert(image, join(folder, 'raw'), snapshot)
    const name = snapshot ? `disk@${snapshot}.raw` : 'disk.raw'
    t.equal(await call(HERE, 'difference', file(name), raw), -1, name)
    rmSync(raw)
  }
})
