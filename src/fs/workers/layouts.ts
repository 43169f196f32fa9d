/**
 * Lays out files that are opened, so that the kernel can read them by itself; the main thread's part.
 *
 *  (1) One at a time, in a thread of its own: those who opened the file wait for it, and nobody else.
 *  (2) It ends within a bounded time, whatever the storage does. Then the file is served as all others.
 *  (3) The image has not changed since its tables were opened: that is looked at when all blocks are shared. So the file has the
 *      bytes that the image had all the time.
 */
import { runApart } from '../../image/checking/apart.js'
import { filesFrom } from '../../image/layer.js'
import { type LayoutResult, MOST_LAYOUT_MS } from '../../image/layout/lay-out.js'
import { closeBacking } from '../../io/backing.js'
import { closeFile, duplicate } from '../../io/libc.js'
import type { LayerSpec } from '../../formats/format.js'
import type { Logger } from '../../log.js'
import { inWords } from '../../errors.js'
import type { Backings, Settled } from '../nodes/backings.js'
import { because } from '../nodes/passthrough-reasons.js'
import { watchOf, type World } from '../live/world.js'

/** For a thread to start, and to end what it does. */
const AROUND_MS = 3000

export interface LayoutParts {
  readonly backings: Backings
  /** How much may be written out, in bytes. */
  readonly copiedBytes: number
  readonly logger: Pick<Logger, 'debug' | 'warn'>
  /** Called when this has noticed that somebody else has changed the file at `path`. */
  readonly onChanged: (path: string) => void
  /** Returns the world that the mount shows now. */
  world(): World
}

export class Layouts {
  private last: Promise<void> = Promise.resolve()

  constructor(private readonly parts: LayoutParts) {}

  /** Lays out the file `id`, if nobody has begun that. Never throws. @param device a /dev/fuse of the mount */
  begin(id: number, device: number): void {
    if (!this.parts.backings.begin(id)) return
    this.last = this.last.then(() => this.layOut(id, device))
  }

  /** Resolves when it is decided how the file is served. */
  private async layOut(id: number, device: number): Promise<void> {
    const { backings, logger } = this.parts
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>(resolve => {
      timer = setTimeout(resolve, MOST_LAYOUT_MS + AROUND_MS)
      timer.unref()
    })
    await Promise.race([late, this.attempt(id, device)])
    clearTimeout(timer)
    if (backings.settle(id, because('slow'))) logger.debug({ file: id }, 'a layout takes too long')
  }

  private async attempt(id: number, device: number): Promise<void> {
    const { backings, copiedBytes, logger } = this.parts
    const world = this.parts.world()
    const entry = world.entries[world.ids.indexOf(id)]
    let settled: Settled = because('changed')
    try {
      if (entry) {
        const started = performance.now()
        const result = await this.run(world, { entry, copiedBytes, device })
        const milliseconds = Math.round(performance.now() - started)
        logger.debug({ file: entry.name, milliseconds, ...result }, 'laid out')
        if ('obstacle' in result) settled = because(result.obstacle)
        else if (this.isAsOpened(world)) settled = { ...result, isLaidOut: true }
        else closeBacking(device, result.backing)
      }
    } catch (error) {
      settled = because('unreadable')
      logger.warn({ why: inWords(error) }, 'a file could not be laid out')
    }
    if (!backings.settle(id, settled) && 'backing' in settled) closeBacking(device, settled.backing)
  }

  /** Reports whether the mount still shows `world`, and nobody has changed its files since they were opened. */
  private isAsOpened(world: World): boolean {
    if (this.parts.world() !== world) return false
    return watchOf(world, this.parts.onChanged)?.look() === false
  }

  private async run(
    { layers }: World,
    setup: Pick<Parameters<typeof runLayout>[0], 'entry' | 'copiedBytes' | 'device'>,
  ): Promise<LayoutResult> {
    // The image may be opened anew meanwhile, and its descriptors closed.
    const own = new Map<number, number>()
    try {
      for (const { fd } of layers.flatMap((_, index) => filesFrom(layers, index))) {
        if (!own.has(fd)) own.set(fd, duplicate(fd))
      }
      return await runLayout({ ...setup, layers: layers.map(layer => withFiles(layer, own)) })
    } finally {
      for (const fd of own.values()) closeFile(fd)
    }
  }
}

const runLayout = (setup: Parameters<typeof runApart<'layout'>>[1]): Promise<LayoutResult> =>
  runApart('layout', setup)

function withFiles(layer: LayerSpec, own: ReadonlyMap<number, number>): LayerSpec {
  const of = <T extends { readonly fd: number }>(file: T): T => ({
    ...file,
    fd: own.get(file.fd) as number,
  })
  const { dataFile, extentFiles } = layer
  return {
    ...of(layer),
    ...(dataFile && { dataFile: of(dataFile) }),
    ...(extentFiles && { extentFiles: extentFiles.map(of) }),
  }
}
