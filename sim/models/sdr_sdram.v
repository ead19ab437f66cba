// Behavioural model of an SDRAM of 32 MiB (16M words of 16 bits, four banks of 8,192 rows of 512
// columns), as far as the engine uses one: a mode of two clocks' latency, bursts of four reads, single
// writes, no masks.
//
// What a host must not do (commands too close, out of their order, or a row that is not refreshed)
// ends the simulation. While it does not send, `dq_o` is random: on a board it floats. What it
// sends changes right after the edge before the one at which it is valid: a bench adds the ways.
// Times are the slowest of those of IS42S16160G-7, MT48LC16M16A2-75, AS4C32M16SB-7 and W9825G6KH-6.

`timescale 1ns / 1ps

module sdr_sdram #(
    parameter POWER_NS     = 199000.0,
    parameter CLOCK_NS     = 10.0,   // tCK2
    parameter PRECHARGE_NS = 20.0,   // tRP
    parameter ACTIVATE_NS  = 20.0,   // tRCD
    parameter OPEN_NS      = 45.0,   // tRAS
    parameter CYCLE_NS     = 67.5,   // tRC, tRFC
    parameter RECOVERY_NS  = 15.0,   // tWR
    parameter REFRESH_NS   = 7812.5  // a row's share of 64 ms
) (
    input             clk,
    input             cke,
    input             cs_n,
    input             ras_n,
    input             cas_n,
    input             we_n,
    input      [1:0]  ba,
    input      [12:0] a,
    input      [1:0]  dqm,
    input      [15:0] dq,          // as it is outside
    output reg [15:0] dq_o,
    output reg        drives = 0
);
    localparam ACTIVATE = 3'b011, READ = 3'b101, WRITE = 3'b100, PRECHARGE = 3'b010;
    localparam REFRESH = 3'b001, SET_MODE = 3'b000, NOP = 3'b111;

    reg [15:0] mem [0:(1 << 24) - 1];  // bank, row, column

    reg        powered = 1;     // a bench may cut it, and all but the content is forgotten

    realtime   powered_at = -1, rose_at = -1000, closed_at = -1000, opened_at = -1000;
    realtime   refreshed_at = -1000, written_at = -1000, mode_at = -1000;
    integer    refreshes = 0;
    reg        ready = 0;       // there is a mode
    reg        enabled = 0;     // it was in the last clock
    reg        open = 0;        // a row of a bank
    reg [1:0]  bank = 0;
    reg [12:0] row = 0;
    reg [8:0]  column = 0;
    integer    left = 0;        // of a burst

    always @(negedge powered) begin
        powered_at = -1;
        closed_at = -1000;
        {ready, open, enabled, drives} = 0;
        refreshes = 0;
        left = 0;
    end

    always @(posedge clk) if ($realtime > 0 && powered) begin
        if (powered_at < 0) powered_at = $realtime;
        if ($realtime - rose_at < CLOCK_NS - 0.01) $fatal(1, "sdr_sdram: clk is too fast");
        rose_at = $realtime;
        if (ready && $realtime - refreshed_at > REFRESH_NS)
            $fatal(1, "sdr_sdram: must be refreshed every %0.1f ns", REFRESH_NS);

        // A burst goes on whatever is said, but for another read.
        drives = left > 0;
        dq_o = left > 0 ? mem[{bank, row, column}] : $urandom;
        if (left > 0) begin
            column = {column[8:2], column[1:0] + 2'd1};
            left = left - 1;
        end

        if (!cke && enabled) $fatal(1, "sdr_sdram: clk must stay enabled");
        enabled = cke;
        if (open && $realtime - opened_at > 100000.0) $fatal(1, "sdr_sdram: row is open too long");
        if (cke && !cs_n && {ras_n, cas_n, we_n} != NOP) begin
            if ($realtime - powered_at < POWER_NS) $fatal(1, "sdr_sdram: said something too early");
            if ($realtime - mode_at < 2 * CLOCK_NS) $fatal(1, "sdr_sdram: mode was set just now");
            if ($realtime - refreshed_at < CYCLE_NS - 0.01) $fatal(1, "sdr_sdram: is being refreshed");
            case ({ras_n, cas_n, we_n})
                PRECHARGE: begin
                    if (open && ba != bank && !a[10]) $fatal(1, "sdr_sdram: another bank is open");
                    if (left > 0) $fatal(1, "sdr_sdram: cutting bursts short is not modelled");
                    if (open && $realtime - opened_at < OPEN_NS - 0.01)
                        $fatal(1, "sdr_sdram: row is closed too early");
                    if ($realtime - written_at < RECOVERY_NS - 0.01)
                        $fatal(1, "sdr_sdram: row is closed too early after a write");
                    open = 0;
                    closed_at = $realtime;
                end
                REFRESH, SET_MODE, ACTIVATE: begin
                    if (open) $fatal(1, "sdr_sdram: a row is open");
                    if (closed_at < 0) $fatal(1, "sdr_sdram: rows must be closed first");
                    if ($realtime - closed_at < PRECHARGE_NS - 0.01)
                        $fatal(1, "sdr_sdram: row was closed just now");
                    if (!ras_n && !cas_n && we_n) begin
                        refreshed_at = $realtime;
                        refreshes = refreshes + 1;
                    end else if (!cas_n) begin
                        if (refreshes < 8) $fatal(1, "sdr_sdram: must be refreshed eight times first");
                        if ({ba, a} != 15'b00_000_1_00_010_0_010)
                            $fatal(1, "sdr_sdram: mode %b is not modelled", {ba, a});
                        ready = 1;
                        mode_at = $realtime;
                    end else begin
                        if (!ready) $fatal(1, "sdr_sdram: must have a mode");
                        if ($realtime - opened_at < CYCLE_NS - 0.01)
                            $fatal(1, "sdr_sdram: rows are opened too fast");
                        open = 1;
                        opened_at = $realtime;
                        bank = ba;
                        row = a;
                    end
                end
                READ, WRITE: begin
                    if (!open || ba != bank) $fatal(1, "sdr_sdram: no row is open");
                    if ($realtime - opened_at < ACTIVATE_NS - 0.01)
                        $fatal(1, "sdr_sdram: row was opened just now");
                    if (a[12:11] != 0 || a[9]) $fatal(1, "sdr_sdram: there is no such column");
                    if (a[10]) $fatal(1, "sdr_sdram: closing by itself is not modelled");
                    if (dqm != 0) $fatal(1, "sdr_sdram: masks are not modelled");
                    if (we_n) begin
                        column = a[8:0];
                        left = 4;
                    end else begin
                        if (left > 0 || drives) $fatal(1, "sdr_sdram: both drive the data");
                        mem[{bank, row, a[8:0]}] = dq;
                        written_at = $realtime;
                    end
                end
                default: $fatal(1, "sdr_sdram: unknown command %b", {ras_n, cas_n, we_n});
            endcase
        end
    end
endmodule
