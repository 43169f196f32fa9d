/** The warm-up's requests: all of them succeed, on images of every make, and nothing is left of them. */
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { closeChain, openChain } from '../../src/formats/chain.js'
import { warmUp } from '../../src/fs/warm-up.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'

const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
const SIZE = 2 ** 20

const KINDS: Record<string, Omit<ImageSpec, 'sizeBytes'> | undefined> = {
  raw: undefined,
  'qcow2 of version 3': {},
  'qcow2 of version 2': { version: 2 },
  'counts of 1 bit': { refcountOrder: 0 },
  'counts of 64 bits': { refcountOrder: 6 },
  subclusters: { isExtended: true, clusterBits: 14 },
  'an external data file': { dataFile: 'data' },
  'lazy counts': { compatible: 1n },
}

const openFiles = () => readdirSync('/proc/self/fd').length

for (const [name, spec] of Object.entries(KINDS)) {
  t.test(name, async t => {
    const file = join(tempFolder(t), 'disk')
    if (spec) {
      const image = buildImage({ ...spec, sizeBytes: SIZE })
      image.write(file)
      if (spec.dataFile) writeFileSync(join(file, '..', spec.dataFile), Buffer.alloc(SIZE))
    } else writeFileSync(file, Buffer.alloc(SIZE))
    const chain = openChain(file)
    t.teardown(() => closeChain(chain))
    const before = openFiles()
    const steps = warmUp(chain.layers[0], CACHES)
    let count = 0
    // What a request fails with is thrown here.
    while (!steps.next().done) count++
    t.ok(count > 100, 'it has many steps')
    t.equal(openFiles(), before, 'its files are closed')
  })
}
