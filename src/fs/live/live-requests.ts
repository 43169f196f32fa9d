/** Does what commands ask of a mounted image over its socket. */
import type { Handler, Work } from '../../control/listener.js'
import type { Request, RequestOf } from '../../control/protocol.js'
import { sentList } from '../../control/received-list.js'
import { ImageError } from '../../errors.js'
import type { InternalSnapshot } from '../../formats/format.js'
import { findFormat } from '../../formats/registry.js'
import { describeSnapshot } from '../../image/info.js'
import { snapshotListOf } from '../../image/snapshots/snapshot-list.js'
import { indexOfSnapshot, type SnapshotName } from '../../image/snapshots/snapshot-names.js'
import type { LiveDisk } from './live-changes.js'
import type { Refresher } from './refresher.js'
import type { ServedImage } from '../served-image.js'
import { mountState } from '../status/mount-state.js'

/** The most cells of a map that a server makes. */
const MAX_MAP_CELLS = 2 ** 16

export const liveRequests =
  (image: ServedImage, live: LiveDisk, refresher: Refresher): Handler =>
  async (request, work) =>
    // JSON has no undefined.
    (await done(image, live, refresher, request, work)) ?? null

async function done(
  image: ServedImage,
  live: LiveDisk,
  refresher: Refresher,
  request: Request,
  { remark, gone }: Work,
): Promise<unknown> {
  switch (request.do) {
    case 'status':
      return mountState(image)
    case 'remount':
      return live.remount(request.write)
    case 'list':
      return sentList(snapshotListOf(image.chain, live.path, live.snapshots(), request.layers))
    case 'refresh':
      return refresher.refresh()
    case 'create':
      return live.createSnapshot(request.tag, { replace: request.replace })
    case 'delete':
      return sentList((await deleted(live, request, gone)).map(describeSnapshot))
    case 'rename':
      return live.renameSnapshot(onlyOne(namesOf(request), live), request.to)
    case 'revert':
      return live.revert(onlyOne(namesOf(request), live), request.discard)
    case 'resize': {
      const { sign, bytes } = request
      const now = image.views.disk?.sizeBytes ?? 0
      return live.resize(sign === '' ? bytes : sign === '+' ? now + bytes : now - bytes)
    }
    case 'check': {
      const { format } = live
      if (!findFormat(format)?.checking) return { format, result: null }
      return { format, result: await live.check(part => remark({ progress: part }), gone) }
    }
    case 'usage': {
      const { mapCells } = request
      if (mapCells > MAX_MAP_CELLS) {
        throw new ImageError('REFUSED', 'so large a map is not made', { path: live.path })
      }
      const wanted = { names: namesOf(request), mapCells }
      return live.usage(wanted, part => remark({ progress: part }), gone)
    }
  }
}

async function deleted(
  live: LiveDisk,
  request: RequestOf<'delete'>,
  gone: AbortSignal,
): Promise<readonly InternalSnapshot[]> {
  const { byAge, before, dryRun, wait } = request
  const snapshots = live.snapshots()
  const old = snapshots.filter(({ dateSeconds }) => dateSeconds < before)
  const names = byAge ? old.map(({ id }) => ({ id })) : namesOf(request)
  if (dryRun) {
    const { path } = live
    const indexes = names.map(name => indexOfSnapshot({ path, snapshots }, name))
    return snapshots.filter((_, index) => indexes.includes(index))
  }
  if (names.length === 0) return []
  return live.deleteSnapshots(names, wait ? { wait: gone } : {})
}

const namesOf = (request: RequestOf<'delete' | 'rename' | 'revert' | 'usage'>): SnapshotName[] => [
  ...request.tags.map(tag => ({ tag })),
  ...request.ids.map(id => ({ id })),
]

function onlyOne([name, ...others]: readonly SnapshotName[], { path }: LiveDisk): SnapshotName {
  if (name !== undefined && others.length === 0) return name
  throw new ImageError('REFUSED', 'one snapshot must be named', { path })
}
