/**
 * An image of which every byte is known, and so every byte of the replies:
 *
 *   disk.raw        5220 bytes: 512 A, 512 B, hole, zeros, 512 C, hole to the end
 *   disk@first.raw  4096 bytes: 512 a, hole to the end; disk@first.vmstate: 300 V
 *   disk@bad%2Fone.raw  5220 bytes: 512 A, then an L2 entry that cannot be
 */
import { utimesSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { type CatalogEntry, catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { TextSlots } from '../../src/fs/status/control.js'
import { ImageFs } from '../../src/fs/protocol/image-fs.js'
import type { FileSystemParts } from '../../src/fs/nodes/node-operations.js'
import { Tree } from '../../src/fs/nodes/tree.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'

const MODIFIED_SECONDS = 1_700_000_000.5
const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
const APPEARANCE = {
  uid: 1000,
  gid: 1001,
  fileMode: 0o440,
  diskMode: 0o440,
  dirMode: 0o550,
  modified: { seconds: 1_700_000_000, nanoseconds: 500_000_000 },
}

export const NODE = {
  root: 1,
  control: 2,
  stats: 3,
  status: 4,
  disk: 16,
  first: 17,
  vmstate: 18,
  bad: 19,
}
export const STATUS = '{"pid":7}\n'
export const STATS = '{"requests":{}}\n'

const data = (letter: string, length = 512): Cluster => ({
  kind: 'data',
  bytes: Buffer.alloc(length, letter),
})
const A = data('A')
const IMAGE = buildImage({
  clusterBits: 9,
  sizeBytes: 5220,
  clusters: new Map([
    [0, A],
    [1, data('B')],
    [3, { kind: 'zero' }],
    [4, data('C')],
  ]),
  snapshots: [
    {
      ...{ id: '1', name: 'first', seconds: 1_600_000_000, nanoseconds: 250_000_000 },
      sizeBytes: 4096,
      clusters: new Map([[0, data('a')]]),
      vmState: new Map([[0, data('V', 300)]]),
      vmStateBytes: 300,
      extraBytes: 16,
    },
    {
      ...{ id: '2', name: 'bad/one' },
      clusters: new Map([
        [0, A],
        // Beyond any file.
        [1, { kind: 'entry', entry: 2n ** 55n }],
      ]),
    },
  ],
})

/** The file system over that image, until the test ends. */
export function smallFs(t: Test, onlyUids?: readonly number[]): ImageFs {
  return new ImageFs({ ...smallParts(t), ...(onlyUids && { onlyUids }) })
}

/** The same without a protocol. */
export function smallParts(t: Test): FileSystemParts {
  const file = join(tempFolder(t), 'disk.qcow2')
  IMAGE.write(file)
  utimesSync(file, MODIFIED_SECONDS, MODIFIED_SECONDS)
  const chain = openChain(file)
  t.teardown(() => closeChain(chain))
  const { entries } = catalogOf(chain)
  return {
    tree: new Tree(entries, APPEARANCE),
    views: new ViewSet(chain.layers, CACHES),
    layers: chain.layers,
    allocated: new Float64Array(entries.length).fill(-1),
    slots: new TextSlots(),
    controlText: { status: () => STATUS, stats: () => STATS },
  }
}

/** A file system that can only be listed, with `count` files `file0`, `file1`, … */
export function listedFs(count: number, allocated: Float64Array): ImageFs {
  const entries = Array.from({ length: count }, (_, index): CatalogEntry => {
    const modified = { seconds: 0, nanoseconds: 0 }
    const rest = { layer: 0, startOffset: 0, sizeBytes: 512, modified, attributes: {} }
    return { name: `file${index}`, kind: 'snapshot', ...rest }
  })
  return new ImageFs({
    tree: new Tree(entries, APPEARANCE),
    // Nothing is read.
    views: { diskOf: () => undefined } as unknown as ViewSet,
    layers: [],
    allocated,
    slots: new TextSlots(),
    controlText: { status: () => '', stats: () => '' },
  })
}
