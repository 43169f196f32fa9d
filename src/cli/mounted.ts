/** What commands do with an image that is mounted: the server of the mount does the work. */
import type { ServerConnection } from '../control/client.js'
import type { Request } from '../control/protocol.js'
import { printable } from '../errors.js'
import { complain } from './output.js'
import { Progress, type ProgressOptions } from './progress.js'

/** Has the server do what `request` says. Shows the progress, and prints what the server says. Throws MountError. */
export async function ask(
  server: ServerConnection,
  request: Request,
  shown: ProgressOptions = {},
): Promise<unknown> {
  const progress = new Progress(1, { ...shown, isPart: true })
  try {
    return await server.ask(request, remark => {
      if ('progress' in remark) progress.update(remark.progress)
      else complain(`vimgfs: ${printable(remark.say)}\n`)
    })
  } finally {
    progress.end()
  }
}
