/**
 * The cases of vmdk: those of qcow2 without snapshots, on the same disks, in images that qemu-img makes. Their grains are
 * as large as the clusters of qcow2. The read cases also have targets against vmdkmount.
 */
import { readCases, writeCases } from './cases.mjs'
import { compressed, empty, plain } from './images.mjs'

const VMDK = { format: 'vmdk' }

/** All are monolithicSparse unless the title says otherwise. */
export const vmdkReadImages = {
  plain: {
    title: 'vmdk, written in order, incompressible',
    make: (place, { size }) => plain(place, size, VMDK),
  },
  compressed: {
    title: 'vmdk, streamOptimized, about 2:1',
    make: (place, { size }) => compressed(place, size / 4, 'vmdk'),
  },
  empty: {
    title: 'vmdk, never written',
    make: (place, { size }) => empty(place, size, { kind: VMDK }),
  },
}

export const vmdkReadCases = readCases.map(({ id, title, targets, ...readCase }) => ({
  ...readCase,
  id: `vmdk-${id.replace('zlib', 'stream')}`,
  title: title.replace('zlib-compressed', 'streamOptimized'),
  targets: { ...targets, vmdkmount: readCase.pattern === 'randread' ? 5 : 2 },
}))

/** The disks are as large as those of qcow2. */
export const vmdkWriteImages = {
  empty: {
    title: 'vmdk, never written',
    make: (place, { size }) => empty(place, size / 2, { kind: VMDK }),
  },
  plain: {
    title: 'vmdk, written in order, incompressible',
    make: (place, { size }) => plain(place, size / 2, VMDK),
  },
}

export const vmdkWriteCases = writeCases
  .filter(({ image }) => image in vmdkWriteImages)
  .map(writeCase => ({ ...writeCase, id: `vmdk-${writeCase.id}`, targets: { qsd: 1.5 } }))
