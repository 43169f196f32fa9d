/** A raw disk whose file programs may write past this program, through maps. */
import t from 'tap'
import type { WritableDisk } from '../../src/formats/writable.js'
import { openWritten } from '../support/store-image.js'
import { MemoryStore, WrappedStore } from '../support/stores.js'

class Syncs extends WrappedStore {
  count = 0
  override sync(): void {
    this.count++
    super.sync()
  }
}

function opened() {
  const store = new Syncs(new MemoryStore('disk', Buffer.alloc(4096)))
  return { store, disk: openWritten('raw', { store }).disk as WritableDisk }
}

t.test('a flush syncs only what was written', async t => {
  const { store, disk } = opened()
  disk.flush()
  t.equal(store.count, 0)
  t.same(disk.close(), [])
  t.equal(store.count, 0)
})

t.test('with maps, each flush syncs, and so does closing', async t => {
  const { store, disk } = opened()
  t.notOk(disk.isMapped)
  disk.noteMaps()
  t.ok(disk.isMapped)
  disk.flush()
  disk.flush()
  t.equal(store.count, 2)
  t.equal(disk.modified, 0, 'nothing was written by this program')
  t.notOk(disk.isDirty)
  disk.close()
  t.equal(store.count, 3)
})
