/**
 * Changes of the tree that programs make (`-o manage`): a new file is a new snapshot, a file that is removed a deleted one, and
 * a file that is renamed one with another tag. The main thread makes them.
 *
 * While such a request is not answered, the kernel holds the lock of the folder. Another change may need that lock: it looks up a
 * path in the mount. So a request waits for its turn for a bounded time only. Nor may a change wait until the kernel has forgotten a
 * name, for which it takes the lock: where programs change the tree, the kernel keeps no names.
 */
import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, ImageError, isExpected, oneLine } from '../../errors.js'
import { tagFor } from '../../image/file-names.js'
import type { Logger } from '../../log.js'
import type { Changer } from './changer.js'
import type { ChangeTree, TreeChange } from '../workers/errands.js'
import type { LiveDisk } from './live-changes.js'
import type { ServedImage } from '../served-image.js'

const { EBUSY, EEXIST, ENOENT, EPERM } = constants.errno

/** How long a request waits for a change that is in progress, and how often it looks. */
const PATIENCE_MS = 2000
const LOOK_MS = 5

/** The refusal of a request, by an errno. */
class Refusal extends Error {
  override name = 'Refusal'
  constructor(readonly errno: number) {
    super(`errno ${errno}`)
  }
}

/** Returns the function that changes the tree of a mounted image. */
export const treeChanger =
  (
    image: ServedImage,
    live: LiveDisk,
    changer: Pick<Changer, 'isBusy'>,
    logger: Logger,
  ): ChangeTree =>
  async change => {
    try {
      for (let waited = 0; changer.isBusy; waited += LOOK_MS) {
        if (waited >= PATIENCE_MS) throw new Refusal(EBUSY)
        await sleep(LOOK_MS)
      }
      await make(image, live, change)
      return 0
    } catch (error) {
      if (!(error instanceof Refusal)) {
        const why = isExpected(error) ? oneLine(error) : (error as Error).stack
        logger.warn({ why, ...change }, 'a change of the folder is refused')
      }
      return errnoFor(error)
    }
  }

async function make(image: ServedImage, live: LiveDisk, change: TreeChange): Promise<void> {
  const { name } = change
  if (change.kind === 'create') {
    const tag = requireTag(live.path, name)
    if (has(image, name)) throw new Refusal(EEXIST)
    await live.createSnapshot(tag)
    return
  }
  const id = requireSnapshot(image, name)
  if (change.kind === 'remove') {
    await live.deleteSnapshots([{ id }])
    return
  }
  if (has(image, change.to)) throw new Refusal(EEXIST)
  await live.renameSnapshot({ id }, requireTag(live.path, change.to))
}

const has = ({ world }: ServedImage, name: string): boolean =>
  world.entries.some(entry => entry.name === name)

/** Returns the ID of the snapshot within the image whose disk is the file `name`. Throws Refusal. */
function requireSnapshot({ world }: ServedImage, name: string): string {
  const entry = world.entries.find(one => one.name === name)
  if (!entry) throw new Refusal(ENOENT)
  const id = entry.attributes['snapshot-id']
  const isOwn = entry.kind === 'snapshot' && entry.layer === 0 && entry.table !== undefined
  if (!isOwn || id === undefined) throw new Refusal(EPERM)
  return id
}

/** Returns the tag of a snapshot whose file is called `name`. Throws Refusal. */
function requireTag(image: string, name: string): string {
  const tag = tagFor(image, name)
  if (tag !== undefined) return tag
  // libfuse renames a file that is open when it is removed.
  throw new Refusal(name.startsWith('.fuse_hidden') ? EBUSY : EPERM)
}

function errnoFor(error: unknown): number {
  if (error instanceof Refusal) return error.errno
  return error instanceof ImageError && error.name === 'FileInUse' ? EBUSY : errnoOf(error)
}
