/**
 * An image that this process serves, so that a test can ask for changes of the mounted image without a command. What touches the
 * mount runs in other processes, as always.
 */
import { dirname, join } from 'node:path'
import type { Test } from 'tap'
import { pino } from 'pino'
import type { LiveDisk } from '../../src/fs/live/live-changes.js'
import { parseMountOptions } from '../../src/fs/mounting/options.js'
import { startServer } from '../../src/fs/server.js'
import { mountFolder } from './mount.js'

export interface LiveMount {
  readonly live: LiveDisk
  readonly folder: string
  /** Returns the path of a file of the mount. */
  file(name: string): string
  /** The lines that were logged as warnings and errors. */
  readonly log: readonly string[]
  /** Unmounts, and resolves to whether all is kept. */
  end(): Promise<boolean>
}

/** Mounts `image` until the test ends, or `end` is called. */
export async function serve(
  t: Test,
  image: string,
  { options = [], threads = 2 }: { options?: readonly string[]; threads?: number } = {},
): Promise<LiveMount> {
  const folder = mountFolder(t)
  const log: string[] = []
  const logger = pino({ level: 'warn' }, { write: line => void log.push(line) })
  const server = await startServer(
    {
      image,
      mountpoint: folder,
      options: parseMountOptions(options),
      open: { allowPaths: [dirname(image)] },
      askPassphrase: async () => [],
      say: () => {},
      interruption: new AbortController().signal,
      threads,
      transport: 'direct',
      metadataBytes: undefined,
    },
    logger,
  )
  const end = async () => {
    await server.stop('the test ends')
    return server.finished
  }
  t.teardown(end)
  return { live: server.live, folder, file: name => join(folder, name), log, end }
}
