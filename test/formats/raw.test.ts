/** Raw images: files and block devices. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { noise } from '../fixtures/model.js'
import { dataRuns, openedImage, readAll, readAt } from '../support/image.js'
import { needs, needsRoot, run, tempFolder } from '../support/run.js'

const K = 1024

t.test('a file of any size', async t => {
  for (const sizeBytes of [512, 1001, 64 * K + 1]) {
    const image = join(tempFolder(t), 'disk.img')
    const content = noise(sizeBytes, sizeBytes)
    writeFileSync(image, content)
    const { view, entries } = openedImage(t, image)
    t.equal(entries[0]?.sizeBytes, sizeBytes)
    t.ok(readAll(view()).equals(content))
    const over = Buffer.concat([content.subarray(-10), Buffer.alloc(20)])
    t.ok(readAt(view(), sizeBytes - 10, 30).equals(over), 'zeros past its end')
  }
})

t.test('a block device', { ...needs('losetup'), ...needsRoot() }, async t => {
  const file = join(tempFolder(t), 'disk.img')
  const content = noise(256 * K, 1)
  writeFileSync(file, content)
  const device = (await run('losetup', ['--find', '--show', '--read-only', file])).trim()
  t.teardown(() => run('losetup', ['--detach', device]))
  const { view, chain } = openedImage(t, device)
  t.equal(chain.layers[0].sizeBytes, content.length)
  t.ok(readAll(view()).equals(content))
  t.same(dataRuns(view()), [{ start: 0, end: content.length }], 'all of it is data')
})
