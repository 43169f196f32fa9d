/** Writers that are wrong on purpose: the power cuts of command-cuts.ts find each of them. */
import { join } from 'node:path'
import t from 'tap'
import type { WritableStore } from '../../src/io/store.js'
import { needs, tempFolder } from '../support/run.js'
import { WrappedStore } from '../support/stores.js'
import { cutChange, type ImageChange } from './command-cuts.js'
import {
  CHAINS,
  type ChainKind,
  commitChange,
  type ImageKind,
  QCOW2_KINDS,
  rebaseChange,
  resizeChange,
  VMDK_KINDS,
} from './image-changes.js'

class Unsynced extends WrappedStore {
  override sync(): void {}
}

/** Writes each sector for itself, those of the header from the last to the first, without a sync between. */
class HeaderInParts extends WrappedStore {
  override write(source: Buffer, start: number, length: number, at: number): void {
    const first = at < 512 && length > 24 ? 24 : length
    super.write(source, start, first, at)
    if (first < length) super.write(source, start + first, length - first, at + first)
  }
}

type Flaw = (store: WritableStore, name: string) => WritableStore
const UNSYNCED: Flaw = store => new Unsynced(store)
const BASE_UNSYNCED: Flaw = (store, name) => (name === 'layer1' ? new Unsynced(store) : store)
const EXTENT_UNSYNCED: Flaw = (store, name) => (name === 'disk' ? store : new Unsynced(store))
const IN_PARTS: Flaw = store => new HeaderInParts(store)

const K = 1024
const kind = (title: string) => ({ ...QCOW2_KINDS, ...VMDK_KINDS })[title] as ImageKind
const chain = (title: string) => CHAINS[title] as ChainKind
const LONG_HEADER = 'qcow2, version 2, with a snapshot and a long header'
const UP = { other: { format: 'qcow2' } }

const CASES: readonly [string, Flaw, (folder: string) => Promise<ImageChange>][] = [
  ['nothing is synced', UNSYNCED, at => resizeChange('', at, kind('qcow2'), 5000 * K)],
  ['nothing is synced', UNSYNCED, at => resizeChange('', at, kind(LONG_HEADER), 300 * K)],
  ['the header in parts', IN_PARTS, at => resizeChange('', at, kind(LONG_HEADER), 300 * K)],
  [
    'no extent is synced',
    EXTENT_UNSYNCED,
    at => resizeChange('', at, kind('vmdk, monolithicFlat'), 300 * K),
  ],
  ['the base is not synced', BASE_UNSYNCED, at => commitChange('', at, chain('qcow2 on qcow2'), 1)],
  ['nothing is synced', UNSYNCED, at => commitChange('', at, chain('qcow2 on qcow2'), 1)],
  ['nothing is synced', UNSYNCED, at => rebaseChange('', at, chain('qcow2 on qcow2'), UP)],
  ['nothing is synced', UNSYNCED, at => rebaseChange('', at, chain('vmdk on vmdk'), {})],
]

t.test('every flaw is found', needs('qemu-img'), async t => {
  for (const [flaw, wrap, make] of CASES) {
    const change = await make(join(tempFolder(t), 'images'))
    const options = { seed: 1, perPlace: 6, places: 1000 }
    const cuts = cutChange(change, { ...options, flaw: wrap })
    await t.rejects(cuts, { message: /cut before/ }, `${change.title}: ${flaw}`)
  }
})
