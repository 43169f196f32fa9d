/** The warm-up's requests: all of them succeed, on images of every make, and nothing is left of them. */
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { closeChain } from '../../src/image/chain.js'
import { openChain } from '../../src/image/open-chain.js'
import { warmUp } from '../../src/fs/warm-up.js'
import { buildCowd } from '../fixtures/cowd-builder.js'
import { buildImage, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { buildExtent, descriptorText } from '../fixtures/vmdk-builder.js'
import { tempFolder } from '../support/run.js'

const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
const SIZE = 2 ** 20

const QCOW2: Record<string, Omit<ImageSpec, 'sizeBytes'>> = {
  'qcow2 of version 3': {},
  'qcow2 of version 2': { version: 2 },
  'counts of 1 bit': { refcountOrder: 0 },
  'counts of 64 bits': { refcountOrder: 6 },
  subclusters: { isExtended: true, clusterBits: 14 },
  'an external data file': { dataFile: 'data' },
  'lazy counts': { compatible: 1n },
}

const openFiles = () => readdirSync('/proc/self/fd').length

const SECTORS = SIZE / 512
const descriptor = (type: string, extent: string) =>
  descriptorText('monolithicSparse', SECTORS, extent).replace('SPARSE', type)

/** Each makes its image, or all of its files, in a folder of its own. */
const OTHERS: Record<string, (file: string) => void> = {
  raw: file => writeFileSync(file, Buffer.alloc(SIZE)),
  vmdk: file => {
    const text = descriptorText('monolithicSparse', SECTORS, 'disk')
    writeFileSync(file, buildExtent({ capacitySectors: SECTORS, descriptor: text }).bytes)
  },
  'vmdk with one directory and small grains': file => {
    const shape = { capacitySectors: SECTORS, grainSectors: 1, hasRedundant: false }
    writeFileSync(file, buildExtent({ ...shape, hasZeroGrains: true }).bytes)
  },
  'a flat vmdk': file => {
    writeFileSync(file, descriptor('FLAT', 'flat').replace('"flat"', '"flat" 0'))
    writeFileSync(join(file, '..', 'flat'), Buffer.alloc(SIZE))
  },
  COWD: file => {
    writeFileSync(file, descriptor('VMFSSPARSE', 'delta'))
    writeFileSync(join(file, '..', 'delta'), buildCowd({ sectors: SECTORS }).bytes)
  },
}

const KINDS: Record<string, (file: string) => void> = {
  ...OTHERS,
  ...Object.fromEntries(
    Object.entries(QCOW2).map(([name, spec]) => [
      name,
      (file: string) => {
        buildImage({ ...spec, sizeBytes: SIZE }).write(file)
        if (spec.dataFile) writeFileSync(join(file, '..', spec.dataFile), Buffer.alloc(SIZE))
      },
    ]),
  ),
}

for (const [name, make] of Object.entries(KINDS)) {
  t.test(name, async t => {
    const file = join(tempFolder(t), 'disk')
    make(file)
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
