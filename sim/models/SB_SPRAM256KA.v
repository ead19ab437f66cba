// Behavioural model of the iCE40 UltraPlus single-port RAM: 16,384 words of 16 bits.
//
// Where the cell's output is not specified it is random here: after a write, in standby, and the
// contents after power-off or sleep. So a design that uses such a value fails. The output of a
// cycle without access is the one before, as in the cell.
// A bench reads and writes the contents as `mem`.
// Source of the behaviour: Lattice FPGA-TN-02022, iCE40 SPRAM usage guide.

module SB_SPRAM256KA (
    input  [13:0] ADDRESS,
    input  [15:0] DATAIN,
    input  [3:0]  MASKWREN,   // one bit a nibble, 1 writes
    input         WREN,
    input         CHIPSELECT,
    input         CLOCK,
    input         STANDBY,
    input         SLEEP,
    input         POWEROFF,   // active low: 0 is off
    output reg [15:0] DATAOUT
);
    reg [15:0] mem [0:16383];

    wire off = SLEEP | ~POWEROFF;
    reg  was_off;
    integer i;

    wire [15:0] mask = {{4{MASKWREN[3]}}, {4{MASKWREN[2]}}, {4{MASKWREN[1]}}, {4{MASKWREN[0]}}};

    always @(posedge CLOCK) begin
        was_off <= off;
        if (off) begin
            DATAOUT <= 16'h0000;
            if (!was_off)
                for (i = 0; i < 16384; i = i + 1)
                    mem[i] <= $urandom;
        end else if (STANDBY) begin
            DATAOUT <= $urandom;
        end else if (CHIPSELECT) begin
            if (WREN) begin
                mem[ADDRESS] <= (mem[ADDRESS] & ~mask) | (DATAIN & mask);
                DATAOUT <= $urandom;
            end else begin
                DATAOUT <= mem[ADDRESS];
            end
        end
    end
endmodule
